"""How the clients' adapters become one, against weights that numpy forms and averages.

Toy clients of unequal weight take part in turns. What a client's model would add to the base is
formed from what it trained, beside whatever frozen part it was sent; the ideal of a round is the
mean of these, and so is known without any of the library's arithmetic.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch

from fedsdr.algorithms.aggregation.error import with_aggregation_error
from fedsdr.algorithms.aggregation.fedrot import align_factors, fedrot_lora
from fedsdr.algorithms.aggregation.flexlora import flexlora
from fedsdr.algorithms.aggregation.flora import flora
from fedsdr.algorithms.aggregation.folding import merge_folded
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
    check_update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.core import adapters
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, FOLDED, Adapter, Private, unwrap_private
from fedsdr.core.metrics import Mean
from fedsdr.core.products import rotate_factors
from fedsdr.recipe.sections.evaluate import Evaluate
from support.toy_clients import CLIENTS, RECORDS, SHAPES, random_adapter
from support.toy_rounds import SETUP, Played, build, furthest, same_bits, step

COHORTS = (("anna", "cleo"), CLIENTS, ("cleo", "ben"), ("ben",), CLIENTS)
PATHS = ("layers.0.x", "layers.1.y")
ALL = set(SHAPES)
ONLY = {f: {key for key in SHAPES if f".lora_{f}." in key} for f in "AB"}

EXACT = ("ffa", "rolora", "flora", "fedex")
GLOBAL = ("fedavg", *EXACT, "flexlora", "fedrot")  # "fedavg" alone averages factors


class Seen(NamedTuple):
    """One round, seen from outside; updates, stages and fits by client."""

    number: int
    before: ServerState
    after: ServerState
    sent: Adapter
    updates: dict[str, Update]
    stages: dict[str, Stage]
    fits: dict[str, Fitted]
    clients: dict[str, ClientState]


def rounds(
    algorithm: Algorithm,
    ranks: dict[str, int] | None = None,
    cohorts: Sequence[Sequence[str]] = COHORTS,
    first: Adapter | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[Seen]:
    server = algorithm.init(first or random_adapter("first", dtype=dtype))
    clients = {name: ClientState(rank=(ranks or {}).get(name)) for name in CLIENTS}
    seen = []
    for number, cohort in enumerate(cohorts, start=1):
        played = Played(server, clients, [], [], [])
        after = step(algorithm, server, played, number, cohort, dtype)
        by_client = (
            dict(zip(cohort, each, strict=True))
            for each in (played.updates, played.stages, played.fits)
        )
        sent = algorithm.broadcast(server)
        seen.append(Seen(number, server, after, sent, *by_client, clients=dict(clients)))
        server = after
    return seen


def with_error(name: str) -> Algorithm:
    return build(name, evaluate=Evaluate(aggregation_error=True))


# --- The same in numpy

Formed = dict[str, np.ndarray]


def formed(a: Adapter) -> Formed:
    """B A of each layer, and of its frozen part where there is one."""

    def weight(prefix: str) -> np.ndarray:
        return a[prefix + B_SUFFIX].double().numpy() @ a[prefix + A_SUFFIX].double().numpy()

    return {
        path: weight(path) + (weight(FOLDED + path) if FOLDED + path + A_SUFFIX in a else 0)
        for path in PATHS
    }


def mean(parts: Sequence[tuple[Formed, float]]) -> Formed:
    total = sum(weight for _, weight in parts)
    return {path: sum(w * part[path] for part, w in parts) / total for path in PATHS}


def ideal(seen: Seen) -> Formed:
    """The mean of the models that the clients have after their training."""
    parts = []
    for name, fitted in seen.fits.items():
        frozen = {k: t for k, t in (seen.stages[name].shared or {}).items() if "/" in k}
        parts.append((formed({**unwrap_private(fitted.after), **frozen}), RECORDS[name]))
    return mean(parts)


def best(weight: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def distance(a: Formed, b: Formed) -> float:
    return math.sqrt(sum(float(((a[path] - b[path]) ** 2).sum()) for path in PATHS))


def close(a: Formed, b: Formed, tolerance: float = 1e-10) -> None:
    for path in PATHS:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=tolerance)


def orthogonals(rank: int) -> list[torch.Tensor]:
    """Random rotations and reflections, and every flip of signs."""
    draw = torch.Generator().manual_seed(rank)
    randoms = torch.randn(30, rank, rank, generator=draw, dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * rank)
    return [*torch.linalg.qr(randoms)[0], *map(torch.diag, signs.reshape(-1, rank))]


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


# --- FlexLoRA


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


RANKS = {"anna": 1}


def several(make: Callable[..., Algorithm]) -> Algorithm:
    return make(fedavg(SETUP), NoOptions(), ranks=[1])


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


# --- FLoRA and FedEx-LoRA


def test_flora_is_exact_for_several_ranks():
    algorithm = with_aggregation_error(several(flora))
    for seen in rounds(algorithm, RANKS):
        close(formed(algorithm.deployed(seen.after)), ideal(seen))
        assert seen.after.metrics["aggregation/error"].value < 1e-10
        for client, stage in seen.stages.items():
            plain = adapters.plain_factors(stage.shared or {})
            wanted = adapters.resize_rank(seen.before.adapter, RANKS.get(client, 2))
            assert same_bits(plain, wanted)


def test_flora_starts_each_round_with_another_adapter_that_adds_nothing():
    seen = rounds(build("flora"))
    again = rounds(build("flora"))
    for each in seen:
        assert not any(each.after.adapter[key].any() for key in ONLY["B"])
        for key in ONLY["A"]:
            bound = 1 / math.sqrt(SHAPES[key][1])
            assert 0 < float(each.after.adapter[key].abs().max()) <= bound
    starts = [each.after.adapter for each in seen]
    for i, a in enumerate(starts):
        assert same_bits(a, again[i].after.adapter)
        assert not any(torch.equal(a[key], b[key]) for b in starts[:i] for key in ONLY["A"])


def test_a_round_of_flora_without_clients_is_refused():
    algorithm = build("flora")
    state = algorithm.init(random_adapter("first"))
    with pytest.raises(ValueError, match="more than 0"):
        algorithm.finish(state, algorithm.start(state, Round(1, 0)), Round(1, 0))


def test_fedex_folds_exactly_what_plain_averaging_misses():
    plain = build("fedavg")
    for seen in rounds(build("fedex")):
        fold = plain.start(seen.before, Round(seen.number, 0))
        for update in seen.updates.values():
            fold = plain.add(fold, update)
        averaged = plain.finish(seen.before, fold, Round(seen.number, 0))
        assert furthest(seen.after.adapter, averaged.adapter) < 1e-14
        trained = mean(
            [(formed(unwrap_private(f.after)), RECORDS[c]) for c, f in seen.fits.items()]
        )
        missed = {p: trained[p] - weight for p, weight in formed(averaged.adapter).items()}
        before, after = seen.before.memory.get(FOLDED), formed(seen.after.memory[FOLDED])
        for path in PATHS:
            grown = after[path] - (formed(before)[path] if before else 0)
            np.testing.assert_allclose(grown, missed[path], rtol=0, atol=1e-10)


# --- FedRot-LoRA


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
