"""FlexLoRA: best approximations of the mean, and clients of several ranks."""

import math

import numpy as np
import pytest
import torch

from fedsdr.algorithms.aggregation.error import with_aggregation_error
from fedsdr.algorithms.aggregation.flexlora import flexlora
from fedsdr.algorithms.aggregation.flora import flora
from fedsdr.algorithms.contract import (
    ClientState,
    NoOptions,
    Round,
    Update,
    check_update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.core import adapters
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter, unwrap_private
from fedsdr.core.products import rotate_factors
from support.aggregated_rounds import (
    ALL,
    PATHS,
    RANKS,
    best,
    close,
    distance,
    formed,
    ideal,
    orthogonals,
    rounds,
    several,
)
from support.toy_clients import random_adapter
from support.toy_rounds import SETUP, build, furthest, same_bits


def test_flexlora_is_the_best_approximation_of_the_mean():
    for seen in rounds(build("flexlora")):
        wanted = {path: best(weight, 2) for path, weight in ideal(seen).items()}
        close(formed(seen.after.adapter), wanted, tolerance=1e-9)


def test_flexloras_factors_are_the_nearest_to_those_before():
    def apart(a: Adapter, b: Adapter, path: str) -> float:
        keys = [path + A_SUFFIX, path + B_SUFFIX]
        return math.sqrt(sum(float((a[key] - b[key]).square().sum()) for key in keys))

    for seen in rounds(build("flexlora")):
        for path in PATHS:
            nearest = apart(seen.after.adapter, seen.before.adapter, path)
            for q in orthogonals(2):
                other = {**seen.after.adapter, **rotate_factors(seen.after.adapter, {path: q})}
                assert nearest <= apart(other, seen.before.adapter, path) + 1e-12


def test_flexloras_server_momentum_is_of_the_aligned_factors():
    for seen in rounds(build("flexlora+fedavgm"))[:1]:
        wanted = {path: best(weight, 2) for path, weight in ideal(seen).items()}
        close(formed(seen.after.adapter), wanted, tolerance=1e-9)
        change = adapters.subtract(seen.after.adapter, seen.before.adapter)
        assert furthest(seen.after.memory["m"], change) < 1e-12


def test_a_client_of_smaller_rank_starts_from_the_best_approximation():
    algorithm = several(flexlora)
    for seen in rounds(algorithm, RANKS):
        for client, stage in seen.stages.items():
            rank = RANKS.get(client, 2)
            assert adapters.rank_of(stage.shared or {}) == rank
            assert stage.shared is not None
            assert stage.shared.keys() == ALL
            wanted = {path: best(w, rank) for path, w in formed(seen.before.adapter).items()}
            close(formed(stage.shared), wanted, tolerance=1e-9)
        personal = algorithm.personal(seen.sent, ClientState(rank=1))
        assert personal.shared is not None
        assert adapters.rank_of(personal.shared) == 1
        assert personal.shared.keys() == ALL


def test_the_mean_of_flexlora_is_that_of_products_of_all_ranks():
    for seen in rounds(with_aggregation_error(several(flexlora)), RANKS):
        assert {adapters.rank_of(u.change) for u in seen.updates.values()} == {
            RANKS.get(client, 2) for client in seen.updates
        }
        wanted = {path: best(weight, 2) for path, weight in ideal(seen).items()}
        close(formed(seen.after.adapter), wanted, tolerance=1e-9)
        error = seen.after.metrics["aggregation/error"].value
        assert error == pytest.approx(distance(wanted, ideal(seen)), abs=1e-9)


def test_a_smaller_rank_begins_with_the_first_components_while_b_is_zero():
    first = adapters.fresh_adapter(random_adapter("first"), torch.Generator().manual_seed(0))
    seen = rounds(several(flexlora), RANKS, first=first)[0]
    assert same_bits(seen.stages["anna"].shared, adapters.resize_rank(first, 1))
    wanted = {path: best(weight, 2) for path, weight in ideal(seen).items()}
    close(formed(seen.after.adapter), wanted, tolerance=1e-9)


def test_components_that_no_client_used_are_kept_ready_for_the_next_round():
    """A round of one client of rank 1: B gets a zero column, but A must not be zero there."""
    for seen in rounds(several(flexlora), RANKS, cohorts=[("anna",)] * 2):
        close(formed(seen.after.adapter), ideal(seen), tolerance=1e-10)
        for path in PATHS:
            a = seen.after.adapter[path + A_SUFFIX].numpy()
            np.testing.assert_allclose(a @ a.T, np.eye(2), rtol=0, atol=1e-10)
            trained = unwrap_private(seen.fits["anna"].after)[path + A_SUFFIX].numpy()
            known = np.concatenate([trained, seen.before.adapter[path + A_SUFFIX].numpy()])
            known = np.linalg.qr(known.T)[0]  # new directions are none but these
            np.testing.assert_allclose(a @ known @ known.T, a, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [flexlora, flora])
def test_updates_of_other_ranks_are_refused_by_the_clients_name(make):
    algorithm = several(make)
    state = algorithm.init(random_adapter("first"))
    like = algorithm.uploads(state, Round(1, 0))
    for rank in (1, 2):
        change = adapters.resize_rank(random_adapter("change"), rank)
        check_update("dora", Update(change, 1.0), like, algorithm.ranks)
    wide = adapters.resize_rank(random_adapter("change"), 3)
    one = adapters.resize_rank(random_adapter("change"), 1)
    mixed = {k: one[k] if k.startswith("layers.0.") else t for k, t in random_adapter("c").items()}
    for change in (wide, mixed):
        with pytest.raises(ValueError, match=r"update of client 'dora': .* has shape"):
            check_update("dora", Update(change, 1.0), like, algorithm.ranks)
    plain = make(fedavg(SETUP), NoOptions())
    with pytest.raises(ValueError, match=r"update of client 'dora': .* has shape"):
        check_update("dora", Update(one, 1.0), like, plain.ranks)
