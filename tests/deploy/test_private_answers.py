"""Under differential privacy no number leaves a client but those that noise was added to: of no
operation, whatever its records are."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from fedsdr.core import files
from fedsdr.core.progress import silent_reporter
from fedsdr.data.partition import build_clients
from fedsdr.deploy.client.operations import OPERATIONS
from fedsdr.deploy.protocol.agreement import agreed_keys, agreement_digest
from fedsdr.deploy.protocol.messages import Answer, Operation, Request, encode_message
from fedsdr.deploy.protocol.signing import UNSIGNED
from fedsdr.deploy.server.admission import ServerConnection
from fedsdr.deploy.server.engine import WEIGHTS_FILE
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.recipe.load import load_recipe
from support import tiny_recipe
from support.message_lines import client_sides, loopback

ROUNDS: dict[Operation, int] = {"hello": 0, "prepare": 0, "evaluate": 0, "fit": 1, "finish": 1}
KINDS = ("held out", "trained on", "one more")
MODES = ("none", "local", "central")
Answers = Mapping[Operation, Answer]


def private_setting(folder: Path, mode: str, **sections: Any) -> Path:
    noise = {"mode": mode, "clip": 0.1, "noise_multiplier": 1.0}
    sections.setdefault("privacy", noise | {"noise_seed": 7})
    return tiny_recipe.write_recipe(folder, federation={"rounds": 1}, **sections)


def change_record(recipe_file: Path, kind: str) -> None:
    """Another text in one of anna's records, or one record more."""
    path = recipe_file.parent / "data" / "anna.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    [anna] = [c for c in build_clients(load_recipe(recipe_file).data, 0) if c.name == "anna"]
    text = {"prompt": "red near blue", "response": "the dog likes a green bird and a cat is not"}
    if kind == "one more":
        records.append(text)
    else:
        part = anna.held_out if kind == "held out" else anna.train
        [index] = [k for k, row in enumerate(records) if row["response"] == part[0].response][:1]
        records[index] = text
    tiny_recipe.write_rows(path, records)


def asked(recipe_file: Path) -> dict[Operation, Answer]:
    """Anna's answers to one question of each operation."""
    with pytest.MonkeyPatch.context() as patch:  # of a journal's name, which is drawn
        patch.setattr("fedsdr.deploy.client.journal.secrets.token_hex", lambda size: "0" * 2 * size)
        side = client_sides(recipe_file, recipe_file.parent / "sides")["anna"]
    first = side._first()
    blank = Request("hello", "run", agreement_digest(side.recipe), "anna", "fedsdr", began=1)
    questions = {
        operation: replace(blank, operation=operation, round=round, shared=first)
        for operation, round in ROUNDS.items()
    }
    questions["hello"] = replace(blank, agreed=agreed_keys(side.recipe))
    questions["prepare"] = replace(questions["prepare"], shared={})
    questions["finish"] = replace(questions["finish"], counted=1)
    return {each: side._answer(question, "0" * 32)[0] for each, question in questions.items()}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Answers]:
    """(mode, what was changed) -> anna's answers."""
    found: dict[tuple[str, str], Answers] = {}
    for mode in MODES:
        for kind in ("nothing", *KINDS):
            folder = tmp_path_factory.mktemp("told")
            recipe_file = private_setting(folder, mode)
            if kind != "nothing":
                change_record(recipe_file, kind)
            found[mode, kind] = asked(recipe_file)
    return found


def test_every_operation_is_asked(told):
    assert set(ROUNDS) == {"hello", *OPERATIONS} == set(get_args(Operation))
    for (mode, _), answers in told.items():
        refused = {each for each, answer in answers.items() if answer.refused}
        assert refused == (set() if mode == "none" else {"evaluate"})


@pytest.mark.parametrize("mode", ["local", "central"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", ROUNDS)
def test_no_answer_depends_on_a_record_but_by_the_change_with_noise(told, mode, kind, operation):
    """The noise is the same on both sides, so that of what was held out not a bit depends."""
    before, after = told[mode, "nothing"][operation], told[mode, kind][operation]
    if kind != "held out":
        before, after = replace(before, change={}), replace(after, change={})
    assert encode_message(before) == encode_message(after)


def test_the_comparison_would_see_a_record_that_shows(told):
    """Without noise what was held out shows in every score, and one more record in the counts."""
    plain = told["none", "nothing"]
    for operation in ("evaluate", "finish"):
        assert plain[operation].metrics != told["none", "held out"][operation].metrics
    assert plain["prepare"].weight != told["none", "one more"]["prepare"].weight
    assert plain["fit"].metrics != told["none", "trained on"]["fit"].metrics
    for mode in ("local", "central"):
        assert encode_message(told[mode, "nothing"]["fit"]) != encode_message(
            told[mode, "trained on"]["fit"]
        )


def test_a_client_keeps_the_scores_that_it_does_not_tell(tmp_path):
    recipe_file = private_setting(tmp_path, "local")
    assert asked(recipe_file)["finish"].metrics == {}
    [kept] = (tmp_path / "sides" / "anna").glob("runs/run/personal.json")
    assert files.read_json(kept)["anna"]["loss"] > 0
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_served_run_has_no_scores_and_says_why(tmp_path):
    """Nothing is asked for that could not be answered, and the run has all its other results."""
    recipe_file = private_setting(tmp_path, "local", evaluate={"every": 1})
    sides = client_sides(recipe_file, tmp_path / "sides")
    out = tmp_path / "out"
    roster = dict.fromkeys(sides, UNSIGNED)
    recipe = load_recipe(recipe_file)
    connection = ServerConnection(loopback(sides), roster, UNSIGNED, pause=0)
    summary = serve_federation(recipe, out, connection, silent_reporter())
    assert not [row for row in files.read_json_lines(out / "metrics.jsonl") if "eval" in row]
    assert [*files.read_json(out / "result.json")] == ["epsilon"]
    assert set(files.read_json(out / WEIGHTS_FILE).values()) == {1.0}
    words = 'no held-out scores: under privacy.mode = "local"'
    assert words in summary["privacy"]["words"]
    assert "no held-out scores" in (out / "report.html").read_text()
    operations = {row["operation"] for row in files.read_json_lines(sides["ben"].audit.path)}
    assert operations == {"hello", "prepare", "fit", "finish"}
