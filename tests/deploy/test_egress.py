"""What may leave a client is declared, everything else is refused, and all that left is noted."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from fedsdr.algorithms.contract import Round
from fedsdr.core import files
from fedsdr.core.metrics import Mean
from fedsdr.deploy.protocol.egress import (
    DECLARED,
    LOG,
    Audit,
    UndeclaredError,
    check_declared,
    check_tensors,
    without_undeclared,
)
from fedsdr.deploy.protocol.messages import Answer, Operation
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.methods import named_recipe
from support.repository import REPOSITORY

RECIPE = load_recipe(REPOSITORY / "recipes" / "lab.toml")
CHANGE = {"layers.0.x.lora_A.weight": torch.ones(2, 3, dtype=torch.bfloat16)}
NOTHING: dict[str, Any] = {"change": {}, "weight": 0.0, "metrics": {}}
FIT = Answer("fit", "run", "anna", "fedsdr", 1, CHANGE, 8.0, {"loss/rectify": Mean(1.0, 2.0)})


def test_every_operation_is_declared():
    assert set(DECLARED) == set(get_args(Operation))
    check_declared(FIT, RECIPE)
    for operation in DECLARED:
        check_declared(Answer(operation, "run", "anna"), RECIPE)


@pytest.mark.parametrize("operation", [each for each in DECLARED if each != "fit"])
def test_tensors_leave_in_answers_to_fit_alone(operation):
    with pytest.raises(
        UndeclaredError, match=f"tensors may not leave in an answer to '{operation}"
    ):
        check_declared(Answer(operation, "run", "anna", change=CHANGE), RECIPE)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metrics": {"text": Mean(1.0, 1.0)}}, "'text'"),
        ({"metrics": {"loss": Mean(1.0, 1.0)}}, "'loss'"),
        ({"facts": {"model": "abc"}}, "'model'"),
        ({"operation": "hello", "change": {}, "metrics": {}}, "a weight"),
        ({**NOTHING, "operation": "evaluate", "metrics": {"norm/R": Mean(1.0, 1.0)}}, "'norm/R'"),
        ({**NOTHING, "operation": "hello", "facts": {"x": ""}}, "'x'"),
    ],
)  # fmt: skip
def test_what_is_not_declared_may_not_leave(changes: Any, named):
    with pytest.raises(UndeclaredError, match=f"{named} may not leave"):
        check_declared(replace(FIT, **changes), RECIPE)


UNCOUNTED = override_recipe(RECIPE, {"federation.sample_counts": False})
SCORES = ("prepare", "fit", "evaluate", "finish")


def full(operation: Operation) -> Answer:
    """All that an answer may carry under a recipe that keeps nothing back."""
    names = [pattern.replace("*", "x") for pattern in DECLARED[operation].metrics]
    return Answer(
        operation, "run", "anna",
        change=CHANGE if DECLARED[operation].change else {},
        weight=8.0 if DECLARED[operation].weight else 0.0,
        metrics={name: Mean(6.0, 3.0) for name in names},
        facts=dict.fromkeys(DECLARED[operation].facts, "x"),
    )  # fmt: skip


@pytest.mark.parametrize("operation", DECLARED)
@pytest.mark.parametrize("mode", ["local", "central"])
def test_under_differential_privacy_the_change_and_facts_are_all_that_leaves(operation, mode):
    private, answer = override_recipe(RECIPE, {"privacy.mode": mode}), full(operation)
    told = without_undeclared(answer, private)
    check_declared(answer, RECIPE)
    check_declared(told, private)
    assert told.metrics == {}
    assert told.weight in (0.0, 1.0)
    assert (told.change, told.facts) == (answer.change, answer.facts)
    for name, mean in answer.metrics.items():
        with pytest.raises(UndeclaredError, match=f"'{name}' may not leave"):
            check_declared(replace(told, metrics={name: Mean(mean.value, 1.0)}), private)
    if answer.weight:
        with pytest.raises(UndeclaredError, match="a count may not leave"):
            check_declared(replace(told, weight=8.0), private)


@pytest.mark.parametrize("operation", SCORES)
def test_where_records_are_not_counted_no_weight_tells_how_many_there_are(operation):
    answer = full(operation)
    told = without_undeclared(answer, UNCOUNTED)
    check_declared(told, UNCOUNTED)
    assert {name: mean.value for name, mean in told.metrics.items()} == {
        name: mean.value for name, mean in answer.metrics.items()
    }
    for more in ({"weight": 8.0}, {"metrics": answer.metrics}):
        if DECLARED[operation].weight or "weight" not in more:
            with pytest.raises(UndeclaredError, match="a count may not leave"):
                check_declared(replace(told, **more), UNCOUNTED)


def test_a_private_tensor_may_not_leave_under_any_name():
    secret = {"private.x": torch.full((2, 3), 0.5)}
    other = {"private.y": torch.full((2, 3), 0.25), "zero": torch.zeros(2, 3)}
    answer = replace(FIT, change={"layers.9.lora_B.weight": secret["private.x"].clone()})
    with pytest.raises(UndeclaredError, match=r"'private.x' is private"):
        check_declared(answer, RECIPE, [other, secret])
    check_declared(answer, RECIPE, [other])
    zero = replace(FIT, change={"new": torch.zeros(2, 3)})  # which tells nothing
    check_declared(zero, RECIPE, [other])


FAMILY = ("fedavg", "scaffold+int8", "fedsdr", "fedsdr+topk", "fedsa", "ffa", "flora", "fedex")


@pytest.mark.parametrize("name", FAMILY)
def test_tensors_have_the_names_and_shapes_of_an_update(name):
    algorithm = build_algorithm(named_recipe(name, RECIPE))
    first = {
        f"layers.{k}.x.lora_{factor}.weight": torch.ones(shape)
        for k in range(2)
        for factor, shape in (("A", (4, 6)), ("B", (5, 4)))
    }
    for round in (1, 2):
        state = algorithm.init(first)
        change = algorithm.uploads(state, Round(round, 7))
        answer = replace(FIT, change=change, round=round)
        check_tensors(answer, algorithm, first)
        key = min(change)
        for other in (
            {**change, "secret": torch.zeros(1)},
            {k: t for k, t in change.items() if k != key},
            {**change, key: change[key].double()},
            {**change, key: change[key].flatten()[:-1]},
        ):
            with pytest.raises(UndeclaredError, match="this may not leave: update of client"):
                check_tensors(replace(answer, change=other), algorithm, first)


def test_the_log_says_what_left_and_not_what_it_was(tmp_path):
    audit = Audit(tmp_path)
    audit.sent(FIT, b"12345", "d" * 32)
    audit.refused("a reason")
    assert audit.path == tmp_path / LOG
    assert audit.path.stat().st_mode & 0o777 == 0o600
    sent, refused = files.read_json_lines(audit.path)
    assert sent.pop("time") > 0
    assert sent == {
        "operation": "fit", "run": "run", "method": "fedsdr", "round": 1, "bytes": 5,
        "digest": "d" * 32, "weight": 8.0, "metrics": ["loss/rectify"], "facts": {}, "refused": "",
        "tensors": {
            "layers.0.x.lora_A.weight": {"shape": [2, 3], "dtype": "bfloat16", "bytes": 12}
        },
    }  # fmt: skip
    assert refused["refused"] == "a reason"
    assert refused["bytes"] == 0


def test_a_line_that_a_crash_cut_short_is_dropped_and_the_log_goes_on(tmp_path):
    audit = Audit(tmp_path)
    audit.refused("one")
    with audit.path.open("ab") as file:
        file.write('{"time": 1, "refused": "é'.encode()[:-1])
    assert [row["refused"] for row in files.read_json_lines(audit.path)] == ["one"]
    audit.refused("two")
    assert [row["refused"] for row in files.read_json_lines(audit.path)] == ["one", "two"]


def test_a_log_goes_on_after_a_restart(tmp_path):
    for reason in ("one", "two"):
        Audit(tmp_path).refused(reason)
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [row["refused"] for row in rows] == ["one", "two"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_junk_without_end_is_a_line_a_minute_with_its_count(tmp_path):
    clock = Clock()
    audit = Audit(tmp_path, clock)
    for k in range(6000):  # fifty a second
        clock.now = k / 50
        audit.refused("not a message of this protocol")
    audit.write_rest()
    counts = [row.get("count", 1) for row in files.read_json_lines(audit.path)]
    assert counts == [1, 3000, 2999]


def test_reasons_without_end_are_a_bounded_number_of_lines(tmp_path):
    audit = Audit(tmp_path, Clock())
    for k in range(3000):
        audit.refused(f"reason {k}")
        hello = Answer("hello", f"run-{k}", "anna", refused=f"the recipes differ in {k}")
        audit.sent(hello, b"12", f"{k:032x}")
    audit.write_rest()
    rows = files.read_json_lines(audit.path)
    assert len(rows) < 100
    assert sum(row.get("count", 1) for row in rows) == 6000


def test_whatever_leaves_has_a_line_before_it_does_and_the_same_again_a_count(tmp_path):
    """A relay that asks a recorded question again gets the bytes that have left already."""
    clock = Clock()
    audit = Audit(tmp_path, clock)
    for k in range(200):  # distinct, however many
        audit.sent(FIT, b"12345", f"{k:032x}")
        assert len(files.read_json_lines(audit.path)) == k + 1
    for _ in range(500):
        audit.sent(FIT, b"12345", "0" * 32)
    audit.write_rest()
    *_, again = rows = files.read_json_lines(audit.path)
    assert len(rows) == 201
    assert (again["digest"], again["count"]) == ("0" * 32, 500)


def test_greetings_without_end_are_a_line_a_minute(tmp_path):
    """Each has an answer of its own, which says the same."""
    clock = Clock()
    audit = Audit(tmp_path, clock)
    for k in range(1200):
        clock.now = k / 10
        audit.sent(Answer("hello", "run", "anna", facts={"model": "m"}), b"1", f"{k:032x}")
    audit.write_rest()
    assert [row.get("count", 1) for row in files.read_json_lines(audit.path)] == [1, 600, 599]
