"""The quality gate on 2,000 real pairs: Alpaca's responses, rewritten by Llama-2-7B-chat."""

import json
from collections import Counter
from statistics import fmean

import pytest

from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import Candidate, Rewrite, Verdict
from fedsdr.distillation.verify import build_verifier
from fedsdr.recipe.sections.distill import Distill
from support.real_data import data_file


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    """The 1,648 real rewrites; where the other 352 fell back, there is nothing to judge."""
    found = []
    for name in ("alpaca_raw.json", "alpaca_distilled_llama2_7b_chat.json"):
        path = data_file(f"paired/{name}")
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return [
        Candidate(
            Record((Turn("user", f"{raw['instruction']}\n{raw['input']}".strip()),), raw["output"]),
            Rewrite(new["output"], finished=True),
        )
        for raw, new in zip(*found, strict=True)
        if raw["output"].strip() != new["output"].strip()
    ]


def judged(candidates: list[Candidate], check: str) -> list[Verdict]:
    gate = build_verifier(Distill(checks=(check,)), 0, "cpu")
    return gate.gate([c.record for c in candidates])(candidates)


def test_the_default_gate_refuses_little_but_additions(candidates):
    """These rewrites have passed the gate of those who made them. Most of what is refused has names
    or numbers that are neither in prompt nor response: Llama elaborates."""
    assert len(candidates) == 1648
    refused = {
        check: sum(bool(v.reason) for v in judged(candidates, check)) for check in Distill().checks
    }
    assert {check: count for check, count in refused.items() if count} == {
        "no_answer": 37,
        "echo": 1,
        "meta_talk": 34,
        "repetition": 3,
        "language": 3,
        "invention": 418,
    }


def test_lexical_support(candidates):
    verdicts = judged(candidates, "support")
    assert fmean(v.measured["supported"] for v in verdicts) == pytest.approx(0.383, abs=0.002)
    assert fmean(v.measured["kept"] for v in verdicts) == pytest.approx(0.62, abs=0.02)
    reasons = Counter(v.reason for v in verdicts)
    assert (reasons["unsupported"] + reasons["facts_lost"]) / len(verdicts) == pytest.approx(
        0.40, abs=0.03
    )


def test_rewrites_of_other_records_have_no_support(candidates):
    """The control: each record with the rewrite of the next one."""
    others = [
        a._replace(rewrite=b.rewrite)
        for a, b in zip(candidates, candidates[1:] + candidates[:1], strict=True)
    ]
    assert fmean(bool(v.reason) for v in judged(others, "support")) > 0.99
