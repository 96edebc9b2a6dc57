"""How a client answers a server that greets it: who it is, or which key of the recipe differs."""

from pathlib import Path

import pytest

from fedsdr import __version__
from fedsdr.deploy.client.operations import ClientSide
from fedsdr.deploy.protocol.agreement import agreed_keys, agreement_digest
from fedsdr.deploy.protocol.messages import Answer, Request
from fedsdr.recipe.load import load_recipe, override_recipe
from support import tiny_recipe
from support.message_lines import client_sides


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> ClientSide:
    folder: Path = tmp_path_factory.mktemp("greeting")
    return client_sides(tiny_recipe.write_recipe(folder), folder / "sides")["anna"]


def greeted(side: ClientSide, agreed: dict[str, str]) -> Answer:
    request = Request("hello", "run", agreement_digest(side.recipe), "-", agreed=agreed)
    return side._answer(request, "0" * 32)[0]


def test_a_client_of_the_same_recipe_says_who_it_is(side):
    answer = greeted(side, agreed_keys(side.recipe))
    assert answer.refused == ""
    assert answer.facts == {
        "model": side.loaded.fingerprint, "fedsdr": __version__, "journal": side.journal.name,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": "7"}, "the recipes differ in seed: here seed is 0, at the server 7"),
        ({"a.newer": "1"}, "differ in a.newer: here a.newer is not known, at the server 1"),
        ({"seed": None}, "differ in seed: here seed is 0, at the server not known"),
        ({"lora.rank": "7", "a.newer": "1"}, "differ in a.newer, lora.rank: here a.newer is"),
    ],
)
def test_a_key_that_differs_or_that_one_end_alone_knows_is_named(side, changes, reason):
    agreed = {**agreed_keys(side.recipe), **changes}
    answer = greeted(side, {key: value for key, value in agreed.items() if value is not None})
    assert reason in answer.refused
    assert answer.facts == {}


def test_a_recipe_is_named_by_128_bits_of_what_all_must_set_alike(tmp_path):
    recipe = load_recipe(tiny_recipe.write_recipe(tmp_path))
    digest = agreement_digest(recipe)
    assert len(bytes.fromhex(digest)) == 16
    assert digest != agreement_digest(override_recipe(recipe, {"lora.rank": 3}))
    assert digest == agreement_digest(override_recipe(recipe, {"deployment.min_clients": 1}))
