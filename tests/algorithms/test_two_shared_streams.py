"""The ablation that uploads S too: what it sends and deploys, and that nobody gets it unasked."""

import pytest
import torch

from fedsdr.algorithms.aggregation.folding import merge_folded
from fedsdr.algorithms.contract import ClientState, Round, check_update
from fedsdr.algorithms.table import ALGORITHMS
from fedsdr.algorithms.two_shared_streams import SHARED
from fedsdr.core.adapters import (
    FOLDED,
    add_prefix,
    strip_prefix,
    subtract,
    unwrap_private,
    weighted_mean,
)
from fedsdr.core.errors import UserError
from fedsdr.recipe.load import override_recipe
from fedsdr.recipe.methods import CHOICE_KEYS, NAMED_METHODS, own_name
from support.toy_clients import CLIENTS, ToyClient, random_adapter
from support.toy_rounds import LOCAL, build, dense, furthest, play, recipe, same_bits
from support.two_shared_streams import KEY, REFUSED_CHOICES, build_shared

SENDING = [name for name in ALGORITHMS if name != "local"]


@pytest.mark.parametrize("context", ["joint", "base"])
def test_both_streams_are_sent_and_averaged(context):
    algorithm = build_shared(**{"local.smoothing_context": context})
    state = algorithm.init(random_adapter("first"))
    sent, s0 = algorithm.broadcast(state), state.memory[SHARED]
    fold, learnt = algorithm.start(state, Round(1, 0)), []
    for name in CLIENTS:
        toy = ToyClient(name)
        update, kept = algorithm.client(sent, ClientState(), toy, Round(1, 0))
        smooth, rectify = toy.stages
        assert same_bits(unwrap_private(rectify.private), toy.fits[0].shared)
        beside = strip_prefix(smooth.shared or {}, FOLDED)
        assert same_bits(beside, state.adapter if context == "joint" else {})
        assert (smooth.targets, rectify.targets, rectify.alone) == ("distilled", "raw", 0.5)
        assert furthest(strip_prefix(update.change, SHARED), subtract(toy.fits[0].shared, s0)) == 0
        assert same_bits(kept, ClientState()), "nothing is left for the client to keep"
        check_update(name, update, algorithm.uploads(state, Round(1, 0)), algorithm.ranks)
        fold = algorithm.add(fold, update)
        learnt.append((toy.fits[0].shared, update.weight))
    after = algorithm.finish(state, fold, Round(1, 0))
    assert furthest(after.memory[SHARED], weighted_mean(learnt)) < 1e-12


def test_the_model_of_all_has_both_streams():
    algorithm = build_shared()
    played = play(algorithm)
    r, s = dense(played.server.adapter), dense(played.server.memory[SHARED])
    deployed = dense(merge_folded(algorithm.deployed(played.server)))
    assert all(torch.allclose(deployed[path], r[path] + s[path]) for path in r)
    mine = algorithm.personal(algorithm.broadcast(played.server), played.clients["ben"])
    assert same_bits(mine.shared, algorithm.deployed(played.server))
    assert (mine.own, mine.private) == (None, None)


def test_the_first_model_is_the_base_model_and_the_streams_begin_apart():
    algorithm, first = build_shared(), random_adapter("first")
    state = algorithm.init(first)
    plain = {k: t for k, t in algorithm.deployed(state).items() if not k.startswith(FOLDED)}
    assert same_bits(plain, first)
    s = state.memory[SHARED]
    assert not any(weight.any() for weight in dense(s).values())
    assert all(float((s[key] - first[key]).abs().max()) > 0.1 for key in s if "lora_A" in key)


@pytest.mark.parametrize("name", SENDING)
def test_r_is_the_inner_algorithms(name):
    """S that takes no steps changes nothing of R; and what R learns is learnt as before."""
    quiet = build_shared(name, **{"local.rectify_alone": 1.0})
    plain = build(name)
    assert furthest(play(quiet).server.adapter, play(plain).server.adapter) < 1e-12
    assert furthest(play(build_shared(name)).server.adapter, play(plain).server.adapter) > 1e-3


@pytest.mark.parametrize("name", SENDING)
def test_the_order_of_clients_and_repetition_do_not_matter(name):
    forwards, again = play(build_shared(name)), play(build_shared(name))
    backwards = play(build_shared(name), CLIENTS[::-1])
    assert same_bits(forwards.server, again.server)
    assert furthest(forwards.server.memory[SHARED], backwards.server.memory[SHARED]) < 1e-10


@pytest.mark.parametrize("name", [*NAMED_METHODS, *CHOICE_KEYS])
def test_no_method_uploads_s_by_its_name(name):
    """Nor does any that is put together from names, S being uploaded by one row alone."""
    assert recipe(name).federation.targets != "two_shared_streams"
    if name != "local":
        for update in play(
            build(f"fedsdr+{name}" if name in CHOICE_KEYS else name), rounds=1
        ).updates:
            assert not [key for key in update.change if key.startswith(SHARED)]


def test_it_is_not_called_fedsdr():
    assert own_name(override_recipe(recipe("fedsdr"), KEY)) == "fedsdr_shared"
    with pytest.raises(UserError, match="not known"):
        recipe("fedsdr_shared")


@pytest.mark.parametrize(("key", "value"), REFUSED_CHOICES)
def test_it_keeps_no_company(key, value):
    assert LOCAL.smoothing_state == "keep"
    with pytest.raises(UserError, match="exclude each other: 'two_shared_streams' uploads S too"):
        build_shared(**{key: value})


def test_its_upload_is_twice_as_large():
    first = random_adapter("first")
    algorithm = build_shared()
    wanted = {**first, **add_prefix(first, SHARED)}
    assert algorithm.uploads(algorithm.init(first), Round(1, 0)).keys() == wanted.keys()
