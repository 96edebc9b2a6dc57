"""The paper's claims, judged by a comparison's own numbers and answered in words.

Verdicts are those of `fedsdr.evaluate.verdicts`. Each answer names both what was learnt and
what was kept: a method that learns nothing forgets nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypedDict, TypeVar

from fedsdr.core.statistics import Estimate, paired_difference
from fedsdr.evaluate.equal_facts import Curve, compare_at_equal_facts
from fedsdr.evaluate.verdicts import Condition

Runs = Mapping[str, Sequence[Mapping[str, float]]]  # method -> one {metric: value} a seed
Curves = Mapping[str, Sequence[Curve]]
V = TypeVar("V")


class PaperClaim(NamedTuple):
    """`better` beats `worse` on `metric`; context: further metrics that the answer names."""

    text: str
    metric: str
    better: str
    worse: str
    higher: bool
    context: tuple[str, ...]


class ClaimVerdict(TypedDict):
    claim: str
    verdict: str
    words: str


CLAIMS: Final = (
    PaperClaim(
        "FedSD keeps more general knowledge than FedAvg on raw data at equal rounds",
        "general", "fedsd", "fedavg", True, ("general", "client_facts"),
    ),
    PaperClaim(
        "FedSDR's global model hallucinates less than FedSD's",
        "hallucination", "fedsdr", "fedsd", False, ("hallucination", "client_facts", "general"),
    ),
    PaperClaim(
        "FedSDR's global model answers shorter than FedSD's",
        "length", "fedsdr", "fedsd", False, ("length", "client_facts", "general"),
    ),
    PaperClaim(
        "Verified rewrites teach more client facts than unverified ones",
        "client_facts", "fedsd_verified", "fedsd", True, ("client_facts", "general"),
    ),
)  # fmt: skip

FEDSDR: Final = "fedsdr"
PERSONAL_FACTS: Final = "personal_client_facts"
LABELS: Final = {"general": "general knowledge", PERSONAL_FACTS: "personal client facts"}
# (a, b): a is claimed to keep more general knowledge than b at equal client facts.
AT_EQUAL_FACTS: Final = (
    ("fedsd", "fedavg"),
    ("fedsd_verified", "fedavg"),
    ("fedsdr", "fedavg"),
    ("fedsdr", "fedsd"),
)
NAMES: Final = {
    "fedavg": "FedAvg on raw data",
    "fedsd": "FedSD",
    "fedsd_verified": "FedSD with verified rewrites",
    "fedsdr": "FedSDR's global model",
}


def judge_claims(runs: Runs, own: str, curves: Curves | None = None) -> list[ClaimVerdict]:
    """The verdict on each claim whose methods and metrics were run.

    own: the method that stands for FedSDR: the recipe's own, where it has two streams.
    curves: method -> the evaluations of each run along training, for the claims at equal facts.
    """
    runs, curves = _as_fedsdr(runs, own), _as_fedsdr(curves or {}, own)
    ready = [c for c in CLAIMS if _has(runs, c.better, c.metric) and _has(runs, c.worse, c.metric)]
    equal = [
        judge_at_equal_facts(NAMES[a], NAMES[b], curves[a], curves[b])
        for a, b in AT_EQUAL_FACTS
        if a in curves and b in curves
    ]
    return [*(judge_claim(claim, runs) for claim in ready), *equal, *_best_personal(runs)]


def _as_fedsdr(methods: Mapping[str, V], own: str) -> dict[str, V]:
    """The same with `own` under FedSDR's name, in the place of any other that has it."""
    return {
        FEDSDR if name == own else name: each
        for name, each in methods.items()
        if name == own or name != FEDSDR
    }


def judge_at_equal_facts(
    a_name: str, b_name: str, a: Sequence[Curve], b: Sequence[Curve]
) -> ClaimVerdict:
    """Whether `a` keeps more general knowledge than `b` at the client facts that both learn."""
    found = compare_at_equal_facts(a, b)
    text = f"{a_name} keeps more general knowledge than {b_name} at equal client facts"
    return {
        "claim": text,
        "verdict": Condition(text, found.difference).verdict,
        "words": f"general knowledge: {_signed(found.difference)}. Both at {found.facts:.1f} "
        f"client facts: general knowledge {found.kept_a:.1f} against {found.kept_b:.1f}",
    }


def judge_claim(claim: PaperClaim, runs: Runs) -> ClaimVerdict:
    """The verdict on one claim, in words with its interval and context."""
    a = [run[claim.metric] for run in runs[claim.better]]
    b = [run[claim.metric] for run in runs[claim.worse]]
    difference = paired_difference(a, b)
    words = f"{_label(claim.metric)}: {_signed(difference)}. " + "; ".join(
        f"{_label(name)} {_mean(runs, claim.better, name):.1f} against "
        f"{_mean(runs, claim.worse, name):.1f}"
        for name in claim.context
        if _has(runs, claim.better, name) and _has(runs, claim.worse, name)
    )
    verdict = Condition(claim.text, difference, positive=claim.higher).verdict
    return {"claim": claim.text, "verdict": verdict, "words": words}


def _best_personal(runs: Runs) -> list[ClaimVerdict]:
    """FedSDR's personal models against the best of any other method's."""
    others = [m for m in runs if m not in (FEDSDR, "base") and _has(runs, m, PERSONAL_FACTS)]
    if not others or not _has(runs, FEDSDR, PERSONAL_FACTS):
        return []
    best = max(others, key=lambda m: _mean(runs, m, PERSONAL_FACTS))
    text = "FedSDR's personal models (W0+R+S) know more client facts than any other method's"
    context = (PERSONAL_FACTS, "personal_general")
    verdict = judge_claim(PaperClaim(text, PERSONAL_FACTS, FEDSDR, best, True, context), runs)
    return [{**verdict, "words": f"the best other is {best}. {verdict['words']}"}]


def _signed(d: Estimate) -> str:
    if d["low"] is None:
        return f"{d['mean']:+.1f} (one seed: no interval)"
    return f"{d['mean']:+.1f} (95 % interval {d['low']:+.1f} to {d['high']:+.1f}, {d['n']} seeds)"


def _has(runs: Runs, method: str, metric: str) -> bool:
    return bool(runs.get(method)) and all(metric in run for run in runs[method])


def _mean(runs: Runs, method: str, metric: str) -> float:
    return sum(run[metric] for run in runs[method]) / len(runs[method])


def _label(metric: str) -> str:
    return LABELS.get(metric, metric.replace("_", " "))
