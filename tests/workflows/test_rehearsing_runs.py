"""Runs that rehearse: the same in this process and across organisations, and what is kept of it."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.distillation import rewrite
from fedsdr.generation.sampling import Job, Stop, stop_tokens
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.methods import named_recipe
from fedsdr.workflows import method
from fedsdr.workflows.run import run_recipe
from support.message_lines import loopback
from support.signed_federation import Federation, bits, rows

REHEARSAL = {"share": 0.34, "count": 5, "prompt_tokens": 9, "answer_tokens": 4}


@pytest.fixture(autouse=True)
def ending_texts(tmp_path, monkeypatch):
    """A random model never ends a text: what it wrote is ended where it is cut."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    generate = rewrite.GENERATORS["fedsdr"]

    def ended(model: Any, jobs: Sequence[Job], stop: Stop, *rest: Any) -> list[list[int]]:
        end = min(stop_tokens(stop))
        written = generate(model, jobs, stop, *rest)
        return [ids if ids[-1] == end else [*ids[:-1], end] for ids in written]

    monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", ended)


def test_clients_rehearse_alike_in_this_process_and_elsewhere(tmp_path):
    federation = Federation(tmp_path, rehearsal=REHEARSAL, federation={"targets": "two_stream"})
    run_recipe(federation.recipe, tmp_path / "here", silent_reporter())
    there = federation.serve(loopback(federation.clients()))
    assert bits(tmp_path / "here") == bits(there)
    rehearsed = files.read_json_lines(tmp_path / "here" / "rehearsed.jsonl")
    assert 1 <= len(rehearsed) <= 5
    assert all(row["prompt"] and row["answer"] for row in rehearsed)
    assert not (there / "rehearsed.jsonl").exists()  # a server has no model's words
    for client in federation.clients():
        [theirs] = (tmp_path / "of" / "sides").glob(f"{client}/runs/*/rehearsed.jsonl")
        assert files.read_json_lines(theirs) == rehearsed


def test_a_model_that_writes_no_prompts_ends_a_run_before_it_rewrites(tmp_path, monkeypatch):
    """One token is an end alone, and no prompt."""
    monkeypatch.setattr(method, "rewrite_all", lambda *_: pytest.fail("rewritten first"))
    options = {**REHEARSAL, "prompt_tokens": 1}
    federation = Federation(tmp_path, rehearsal=options, federation={"targets": "two_stream"})
    with pytest.raises(UserError, match=r"ended 0 prompts.*or set rehearsal\.share = 0"):
        run_recipe(federation.recipe, tmp_path / "run", silent_reporter())


@pytest.mark.parametrize(("tokens", "few"), [(2, True), (9, False)])
def test_a_model_that_writes_few_prompts_is_reported(tmp_path, tokens, few):
    """Two tokens are a word and an end: of the vocabulary there are fewer than fifty."""
    options = {**REHEARSAL, "count": 100, "prompt_tokens": tokens}
    recipe = load_recipe(Federation(tmp_path, rehearsal=options).recipe_file)
    said = io.StringIO()
    run_recipe(recipe, tmp_path / "run", Reporter(Console(file=said, width=300)))
    [line] = [each for each in said.getvalue().splitlines() if each.startswith("rehearsal: ")]
    remedy = (
        "of rehearsal.count = 100: the others were not ended within rehearsal.prompt_tokens = 2"
    )
    assert (remedy in line) == few


def test_a_run_without_it_is_another_run_and_writes_nothing_of_it(tmp_path):
    federation = Federation(tmp_path, rehearsal=REHEARSAL)
    for share, out in ((0.34, "with"), (0.0, "without"), (0.34, "again")):
        recipe = override_recipe(load_recipe(federation.recipe_file), {"rehearsal.share": share})
        run_recipe(recipe, tmp_path / out, silent_reporter())
    assert bits(tmp_path / "with") == bits(tmp_path / "again") != bits(tmp_path / "without")
    assert not (tmp_path / "without" / "rehearsed.jsonl").exists()
    sent = [
        [row["train"]["bytes_up"] for row in rows(tmp_path / out)] for out in ("with", "without")
    ]
    assert sent[0] == sent[1]


def test_the_global_model_of_fedsdr2_is_that_of_fedsd_on_its_rewrites(tmp_path):
    """R stands alone: no S has any part in it, although each client has one."""
    distill = {"contrast": 1.0, "contrast_floor": 0.03, "checks": ["empty"]}
    federation = Federation(tmp_path, rehearsal=REHEARSAL, distill=distill)
    for name in ("fedsdr2", "fedsd"):
        recipe = named_recipe(name, load_recipe(federation.recipe_file))
        same = {f"distill.{key}": value for key, value in distill.items()}
        same |= {f"rehearsal.{key}": value for key, value in REHEARSAL.items()}
        run_recipe(override_recipe(recipe, same), tmp_path / name, silent_reporter())
    assert bits(tmp_path / "fedsdr2") == bits(tmp_path / "fedsd")
    assert [*(tmp_path / "fedsdr2").glob("clients/*/private")]
    assert not [*(tmp_path / "fedsd").glob("clients/*/private")]
