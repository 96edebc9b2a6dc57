"""How the clients' adapters become one: exactness, what is sent, and factors that rest."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedsdr.algorithms.aggregation.error import with_aggregation_error
from fedsdr.algorithms.aggregation.folding import merge_folded
from fedsdr.algorithms.contract import (
    ClientState,
    Round,
    Update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.core import adapters
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, FOLDED, unwrap_private
from support.aggregated_rounds import (
    ALL,
    EXACT,
    GLOBAL,
    ONLY,
    close,
    distance,
    formed,
    ideal,
    rounds,
    with_error,
)
from support.toy_clients import SHAPES, random_adapter
from support.toy_rounds import SETUP, build, same_bits

# --- Exactness


@pytest.mark.parametrize("name", EXACT)
def test_the_deployed_model_is_the_mean_of_the_clients_models(name):
    algorithm = build(name)
    for seen in rounds(algorithm):
        deployed = algorithm.deployed(seen.after)
        close(formed(deployed), ideal(seen))
        plain = merge_folded(deployed)
        assert plain.keys() == ALL
        close(formed(plain), ideal(seen))


@pytest.mark.parametrize("name", EXACT)
def test_single_precision_loses_what_it_rounds_and_keeps_the_type(name):
    algorithm = build(name)
    for seen in rounds(algorithm, dtype=torch.float32):
        deployed = algorithm.deployed(seen.after)
        close(formed(deployed), ideal(seen), tolerance=1e-4)
        assert {tensor.dtype for tensor in deployed.values()} == {torch.float32}
        assert {tensor.dtype for tensor in merge_folded(deployed).values()} == {torch.float32}


@pytest.mark.parametrize("name", GLOBAL)
def test_the_reported_error_is_the_distance_from_that_mean(name):
    algorithm = with_error(name)
    for seen in rounds(algorithm):
        before, after = (formed(algorithm.deployed(s)) for s in (seen.before, seen.after))
        error = distance(after, ideal(seen))
        got = {key: value.value for key, value in seen.after.metrics.items()}
        assert got["aggregation/error"] == pytest.approx(error, abs=1e-10)
        lost = error / distance(before, ideal(seen))
        assert got["aggregation/lost"] == pytest.approx(lost, abs=1e-9)
        if name in EXACT:
            assert got["aggregation/error"] < 1e-10
        elif len(seen.updates) > 1:
            assert got["aggregation/error"] > 0.02


@pytest.mark.parametrize("name", ["fedavgm", "fedex+fedadam", "rolora+fedavgm", "median"])
def test_what_a_server_does_on_purpose_counts_as_error_too(name):
    algorithm = with_error(name)
    errors = []
    for seen in rounds(algorithm):
        before, after = (formed(algorithm.deployed(s)) for s in (seen.before, seen.after))
        error, moved = distance(after, ideal(seen)), distance(before, ideal(seen))
        got = {key: value.value for key, value in seen.after.metrics.items()}
        assert got["aggregation/error"] == pytest.approx(error, abs=1e-10)
        assert got["aggregation/lost"] == pytest.approx(error / moved, abs=1e-9)
        errors.append(error)
    assert max(errors) > 0.02


def test_a_round_in_which_nothing_moves_loses_nothing():
    zero = {k: t if k in ONLY["A"] else t * 0 for k, t in random_adapter("first").items()}
    algorithm = with_aggregation_error(fedavg(SETUP))
    state = algorithm.init(zero)
    fold = algorithm.add(algorithm.start(state, Round(1, 0)), Update(adapters.scale(zero, 0), 2.0))
    metrics = algorithm.finish(state, fold, Round(1, 0)).metrics
    assert (metrics["aggregation/error"].value, metrics["aggregation/lost"].value) == (0, 0)


# --- What is sent

UPLOADS: dict[str, Callable[[int], set[str]]] = {
    **dict.fromkeys(("fedavg", "flexlora", "flora", "fedex", "fedrot"), lambda number: ALL),
    "ffa": lambda number: ONLY["B"],
    "rolora": lambda number: ONLY["B" if number % 2 else "A"],
}


@pytest.mark.parametrize("name", UPLOADS)
def test_clients_send_these_tensors(name):
    algorithm = build(name)
    for seen in rounds(algorithm):
        wanted = UPLOADS[name](seen.number)
        assert algorithm.uploads(seen.before, Round(seen.number, 0)).keys() == wanted
        for update in seen.updates.values():
            assert update.change.keys() == wanted


@pytest.mark.parametrize("name", ["ffa", "rolora"])
def test_one_factor_is_half_the_upload(name):
    full = adapters.size_in_bytes(random_adapter("any"))
    for seen in rounds(build(name)):
        for update in seen.updates.values():
            assert adapters.size_in_bytes(update.change) == full / 2


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_what_is_folded_is_downloaded_at_its_smallest_rank(name):
    algorithm = build(name)
    full = adapters.size_in_bytes(random_adapter("any"))
    seen = rounds(algorithm)
    assert adapters.size_in_bytes(seen[0].sent) == full
    for each in seen[1:]:
        folded = adapters.strip_prefix(each.sent, FOLDED)
        assert adapters.size_in_bytes(each.sent) == full + adapters.size_in_bytes(folded)
        for path, weight in formed(folded).items():
            rank = np.linalg.matrix_rank(weight)
            assert folded[path + A_SUFFIX].shape == (rank, weight.shape[1])
            assert folded[path + B_SUFFIX].shape == (len(weight), rank)
        for stage in each.stages.values():  # it is in the clients' forward pass
            assert same_bits(adapters.strip_prefix(stage.shared or {}, FOLDED), folded)


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_a_client_without_training_of_its_own_has_the_deployed_model(name):
    algorithm = build(name)
    for seen in rounds(algorithm):
        personal = algorithm.personal(algorithm.broadcast(seen.after), ClientState())
        assert same_bits(personal.shared, algorithm.deployed(seen.after))
        assert personal.own is personal.private is None


# --- One factor


@pytest.mark.parametrize("server", ["", "+fedavgm", "+fedadam"])
@pytest.mark.parametrize("name", ["ffa", "rolora"])
def test_the_other_factor_rests_and_so_do_its_moments(name, server):
    algorithm = build(name + server)
    for seen in rounds(algorithm):
        moving = UPLOADS[name](seen.number)
        for key in SHAPES:
            moved = not torch.equal(seen.before.adapter[key], seen.after.adapter[key])
            assert moved == (key in moving)
            for moment, tensors in seen.after.memory.items():
                moved = not torch.equal(seen.before.memory[moment][key], tensors[key])
                assert moved == (key in moving)
        for name_, stage in seen.stages.items():
            assert stage.factors == ("B" if moving == ONLY["B"] else "A")
            assert same_bits(stage.shared, seen.before.adapter)  # all of it, one part frozen
            after = unwrap_private(seen.fits[name_].after)
            assert all(torch.equal(after[k], seen.sent[k]) for k in ALL - moving)


def test_momentum_of_a_factor_goes_on_where_it_rested():
    seen = rounds(build("rolora+fedavgm"))
    first, third = seen[0].after.memory["m"], seen[2]
    total = sum(update.weight for update in third.updates.values())
    for key in ONLY["B"]:
        change = sum(u.weight * u.change[key] for u in third.updates.values()) / total
        wanted = 0.9 * first[key] + change
        torch.testing.assert_close(third.after.memory["m"][key], wanted, rtol=0, atol=1e-12)
