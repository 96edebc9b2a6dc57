"""A question whose work failed is answered all the same, once: a server that may ask until
something fails, or does not, learns from a client's records what no noise is on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.deploy.client import operations
from fedsdr.deploy.client.operations import ClientSide
from fedsdr.deploy.protocol.agreement import agreement_digest
from fedsdr.deploy.protocol.messages import Answer, Request
from fedsdr.training.local import LocalTrainer
from support import tiny_recipe
from support.message_lines import client_sides


def begun(folder: Path, mode: str, **federation: Any) -> ClientSide:
    noise = {"mode": mode, "clip": 0.1, "noise_multiplier": 4.0}
    recipe = tiny_recipe.write_recipe(
        folder, privacy=noise, federation={"rounds": 2, "targets": "raw", **federation}
    )
    return client_sides(recipe, folder / "sides")["anna"]


def asking(side: ClientSide, operation: Any, round: int, counted: int = 0) -> Request:
    shared = {} if operation == "prepare" else side._first()
    [method] = side._methods
    return Request(
        operation, "run", agreement_digest(side.recipe), "anna", method, round, shared, counted,
        began=1,
    )  # fmt: skip


def another(request: Request) -> Request:
    return replace(request, shared={key: each + 1 for key, each in request.shared.items()})


def diverging(*args: Any) -> Any:
    raise UserError("training diverged on 'the dog likes'")


def shape(answer: Answer) -> Any:
    tensors = {key: (each.shape, each.dtype) for key, each in answer.change.items()}
    return replace(answer, change={}), tensors


def page(side: ClientSide) -> Any:
    return files.read_json(side.journal.path)["methods"]


@pytest.mark.parametrize("mode", ["local", "central"])
@pytest.mark.parametrize("more", [{}, {"compression": "int8"}, {"lora_aggregation": "ffa"}])
def test_under_differential_privacy_nothing_tells_that_training_failed(
    tmp_path, monkeypatch, caplog, mode, more
):
    well = begun(tmp_path / "well", mode, **more)
    ill = begun(tmp_path / "ill", mode, **more)
    told = [well._answer(asking(well, "fit", 1), "1" * 32)[0]]
    with monkeypatch.context() as patch:
        patch.setattr(LocalTrainer, "__call__", diverging)
        told.append(ill._answer(asking(ill, "fit", 1), "1" * 32)[0])
    assert "the dog likes" in caplog.text
    assert shape(told[0]) == shape(told[1])
    assert told[0].refused == ""
    assert page(well) == page(ill)
    releases = [side.ledger.releases() for side in (well, ill)]
    assert [[each.round for each in made] for made in releases] == [[1], [1]]
    if mode == "local":
        assert any(bool(each.any()) for each in told[1].change.values()), "zeros without noise"
    for side in (well, ill):
        again = side._answer(another(asking(side, "fit", 1)), "2" * 32)[0]
        assert "was answered for another global model" in again.refused
        assert not side._answer(asking(side, "fit", 2, counted=1), "3" * 32)[0].refused


def test_another_question_has_other_noise_though_the_answers_were_deleted(tmp_path, monkeypatch):
    """Zeros with noise: the same for the same question, unlike for another one of that round."""
    monkeypatch.setattr(LocalTrainer, "__call__", diverging)
    monkeypatch.setattr(operations, "noise_secret", lambda method: b"a secret" * 4)
    noise = []
    for place, digest in enumerate(("1" * 32, "1" * 32, "2" * 32)):
        side = begun(tmp_path / str(place), "local")
        noise.append(side._answer(asking(side, "fit", 1), digest)[0].change)
    first, same, other = noise
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("operation", "place"),
    [
        ("fit", "fedsdr.training.local.LocalTrainer.__call__"),
        ("evaluate", "fedsdr.deploy.client.operations.install_model"),
        ("finish", "fedsdr.federation.in_process.InProcessEngine.write_personal"),
    ],
)
def test_work_that_failed_is_not_done_again_for_other_words(
    tmp_path, monkeypatch, operation, place
):
    side = begun(tmp_path, "none")
    request = asking(side, operation, {"finish": 2}.get(operation, 1))
    with monkeypatch.context() as patch:
        patch.setattr(place, diverging)
        failed = side._answer(request, "1" * 32)
    assert failed[0].refused == "failed for a reason that its own log tells"
    assert side._answer(request, "1" * 32) == failed
    assert "was answered for another" in side._answer(another(request), "2" * 32)[0].refused
    if operation == "fit":
        assert not side._answer(asking(side, "fit", 2), "3" * 32)[0].refused
        claimed = asking(side, "evaluate", 2, counted=1)
        assert page(side)["fedavg"]["fitted"] == 2
        assert not side._answer(replace(claimed, counted=2), "4" * 32)[0].refused


def test_a_client_that_could_not_begin_may_be_asked_again(tmp_path, monkeypatch):
    """What fails before a question's own work is no answer to it: a full disk, say."""
    side = begun(tmp_path, "none")
    with monkeypatch.context() as patch:
        patch.setattr("fedsdr.deploy.client.operations.client_examples", diverging)
        assert side._answer(asking(side, "fit", 1), "1" * 32)[0].refused
    assert not side._answer(asking(side, "fit", 1), "1" * 32)[0].refused
