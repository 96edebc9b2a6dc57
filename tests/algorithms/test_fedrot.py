"""FedRot-LoRA: turned copies of one adapter average to it."""

import pytest
import torch

from fedsdr.algorithms.aggregation.fedrot import align_factors, fedrot_lora
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    NoOptions,
    Round,
    ServerState,
    Stage,
    Update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.core import adapters
from fedsdr.core.adapters import Private, unwrap_private
from fedsdr.core.metrics import Mean
from fedsdr.core.products import rotate_factors
from support.aggregated_rounds import (
    ONLY,
    PATHS,
    close,
    distance,
    formed,
    orthogonals,
    rounds,
    with_error,
)
from support.toy_clients import random_adapter
from support.toy_rounds import SETUP, furthest, same_bits


def rotated_copies(algorithm: Algorithm, number: int) -> tuple[ServerState, list[Update]]:
    """A round whose clients all arrive at one weight, in factors turned one way each."""
    common = random_adapter("common")

    def arrive(q: torch.Tensor) -> Fit:
        mine = rotate_factors(common, dict.fromkeys(PATHS, q))

        def fit(stage: Stage) -> Fitted:
            return Fitted(1, Mean(0.0, 1), Private(stage.shared or {}), Private(mine), shared=mine)

        return fit

    round = Round(number, 0)
    state = algorithm.init(random_adapter("first"))
    fold, updates = algorithm.start(state, round), []
    for q in orthogonals(2)[:5]:
        update, _ = algorithm.client(algorithm.broadcast(state), ClientState(), arrive(q), round)
        fold = algorithm.add(fold, update)
        updates.append(update)
    return algorithm.finish(state, fold, round), updates


@pytest.mark.parametrize(("number", "turned"), [(1, False), (2, True), (3, True), (4, True)])
def test_turned_copies_of_one_adapter_average_to_it(number, turned):
    wanted = formed(random_adapter("common"))
    size = distance(wanted, {path: 0 * weight for path, weight in wanted.items()})
    state, updates = rotated_copies(with_error("fedrot"), number)
    plain, _ = rotated_copies(with_error("fedavg"), number)
    assert plain.metrics["aggregation/error"].value > 0.15 * size
    if turned:
        assert state.metrics["aggregation/error"].value < 1e-10
        close(formed(state.adapter), wanted)
    else:  # all clients start from one A, and B is zero
        assert same_bits(state.adapter, plain.adapter)
    for update in updates:  # a client's weights are not changed by turning
        close(formed(adapters.add(random_adapter("first"), update.change)), wanted)


@pytest.mark.parametrize("factor", ["A", "B"])
def test_turning_brings_one_factor_as_near_as_can_be(factor):
    a, reference = random_adapter("mine"), random_adapter("reference")
    turned = align_factors(a, reference, on=factor)
    close(formed(turned), formed(a))
    for key in ONLY[factor]:
        path = key.rpartition(".lora_")[0]
        nearest = torch.linalg.norm(turned[key] - reference[key])
        for q in orthogonals(2):
            other = rotate_factors(a, {path: q})[key]
            assert nearest <= torch.linalg.norm(other - reference[key]) + 1e-12


@pytest.mark.parametrize(("number", "factor"), [(2, "A"), (3, "B"), (4, "A"), (5, "B")])
def test_clients_turn_on_a_in_even_rounds_and_on_b_in_odd_ones(number, factor):
    seen = rounds(fedrot_lora(fedavg(SETUP), NoOptions()))[number - 1]
    for client, update in seen.updates.items():
        wanted = align_factors(unwrap_private(seen.fits[client].after), seen.sent, on=factor)
        got = adapters.add(seen.sent, update.change)
        assert furthest(got, wanted) < 1e-12
        assert furthest(got, unwrap_private(seen.fits[client].after)) > 1e-3
