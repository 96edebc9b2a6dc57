"""Clients trained at once are clients trained one after another: every algorithm, every option."""

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsdr.algorithms.contract import ClientState, Loss, Pull, Schedule, ServerState, Stage
from fedsdr.core.adapters import FOLDED, Private, resize_rank, select_tensors
from fedsdr.core.errors import UserError
from fedsdr.core.products import product_weights
from fedsdr.federation.lockstep import run_together
from fedsdr.model.lora import Stream
from fedsdr.recipe.sections.local import Local
from fedsdr.training.annealing import Annealing
from fedsdr.training.cohort import clip_each, train_cohort
from support.algorithm_cases import SOME, make
from support.cohort_trainers import CLIENTS, COUNTS, furthest, trainers
from support.tiny_models import NAMED, random_adapter, two_streams
from support.toy_clients import secret_round
from support.toy_rounds import tensors
from support.training_stages import STAGES, adapter

TARGETS = ("q_proj", "down_proj")
GENTLE = Local(rectify_steps=3, rectify_lr=1e-3, smooth_steps=2, smooth_lr=1e-3)
CASES = [*SOME, "central privacy fedsdr+fedadam+ffa", "local privacy fedsdr+flora"]


def new_model(dtype: torch.dtype = torch.float64, family: str = "llama") -> Any:
    return two_streams(family, TARGETS if family == "llama" else NAMED[family], dtype=dtype)


def rounds(
    name: str, together: bool, dtype: torch.dtype, count: int = 2, **sections: Any
) -> list[Any]:
    """Server, clients and metrics of a few rounds of an algorithm."""
    model, algorithm = new_model(dtype), make(name, **sections)
    server = algorithm.init(random_adapter(model.blank(), 1, size=0.1))
    clients = {client: ClientState() for client in CLIENTS}
    metrics = []
    for number in range(1, count + 1):
        shared = algorithm.broadcast(server)
        fold = algorithm.start(server, secret_round(number, 1))
        fits = dict(zip(CLIENTS, trainers(model, number), strict=True))

        def half(client: str, shared=shared, number=number):
            own = secret_round(number, 100 * number + CLIENTS.index(client))
            return lambda fit: algorithm.client(shared, clients[client], fit, own)

        def train(asked, fits=fits):
            done = train_cohort([fits[client] for client in asked], list(asked.values()))
            return dict(zip(asked, done, strict=True))

        halves = {client: half(client) for client in CLIENTS}
        done = (
            run_together(halves, train)
            if together
            else {client: work(fits[client]) for client, work in halves.items()}
        )
        for client, (update, state) in done.items():
            clients[client] = state
            fold = algorithm.add(fold, update)
            metrics.append(update.metrics)
        server = algorithm.finish(server, fold, secret_round(number, 1, sum(COUNTS.values())))
    return [form_folded(server), clients, metrics]


def form_folded(server: ServerState) -> ServerState:
    """With the weights of its folded part in place of its factors, which rounding may turn."""
    if FOLDED not in server.memory:
        return server
    formed = product_weights(server.memory[FOLDED])
    return replace(server, memory={**server.memory, FOLDED: formed})


@pytest.mark.parametrize("name", CASES)
def test_every_algorithm_gives_the_same_in_float64(name):
    alone, together = (rounds(name, way, torch.float64, local=GENTLE) for way in (False, True))
    assert furthest(alone[:2], together[:2]) < 1e-10
    for one, other in zip(alone[2], together[2], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].weight == other[key].weight
            assert one[key].sum == pytest.approx(other[key].sum, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_in_float32_it_is_the_same_within_rounding(name):
    """Of all that the server and clients hold, in the mean: Adam turns the rounding of a gradient
    near zero into a step of the learning rate."""
    alone, together = (rounds(name, way, torch.float32, local=GENTLE) for way in (False, True))
    pairs = list(zip(tensors(alone[:2]), tensors(together[:2]), strict=True))
    missed = sum(float((a - b).double().square().sum()) for a, b in pairs)
    assert missed < 1e-6 * sum(float(a.double().square().sum()) for a, _ in pairs)
    for one, other in zip(alone[2], together[2], strict=True):
        losses = [key for key in one if key.startswith("loss")]
        assert losses or "privacy" in name, "which tells none"
        for key in losses:
            assert one[key].sum == pytest.approx(other[key].sum, rel=1e-3)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"micro_batch": 2},
    "checkpointing": {"checkpointing": True},
    "annealing": {"annealing": Annealing("cosine", 1e-4, 4), "round": 3},
    "another rank of S": {"smoothing_rank": 5},
}
SIX = Schedule(4, 1e-2)
R1, W = adapter(1), adapter(5)
MORE = {name: stage for name, (stage, _) in STAGES.items()} | {
    "fresh S": Stage("smooth", "S", SIX, targets="distilled"),
    "faded S": Stage("smooth", "S", SIX, private=Private(adapter(2)), fade=0.5),
    "consolidation": Stage(
        "consolidate", "R", SIX, R1, private=Private(adapter(2)), loss=Loss("consolidation")
    ),
    "soft targets": Stage("rectify", "R", SIX, R1, private=Private(adapter(2)), loss=Loss("soft")),
    "half soft S, reverse": Stage(
        "smooth", "S", SIX, R1, targets="mixed", loss=Loss("soft", "reverse", 0.5)
    ),
    "on policy": Stage("rectify", "R", SIX, R1, loss=Loss("on_policy", "reverse")),
    "pull, shift and mean gradient": Stage(
        "rectify", "R", SIX, R1, pull=Pull(W, 0.8), shift=adapter(6), mean_gradient=True
    ),
    "pull of some, one factor": Stage(
        "rectify", "R", SIX, R1, factors="B", mean_gradient=True,
        pull=Pull(select_tensors(W, lambda key: "layers.1" in key), 5.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MORE)
def test_every_stage_gives_the_same(name, option):
    model, stages = new_model(), [MORE[name]] * len(CLIENTS)
    alone = [
        fit(stage) for fit, stage in zip(trainers(model, **OPTIONS[option]), stages, strict=True)
    ]
    together = train_cohort(trainers(model, **OPTIONS[option]), stages)
    for one, other in zip(alone, together, strict=True):
        assert furthest(vars(one), vars(other)) < 1e-10
        assert one.examples == other.examples
        assert one.loss.weight == other.loss.weight
        assert one.loss.sum == pytest.approx(other.loss.sum, rel=1e-10)
    assert len({float(one.loss.sum) for one in together}) == len(CLIENTS)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_model_of_gpt2_s_shape_gives_the_same(option):
    """Its weights are the other way round, and its positions are learnt."""
    model = new_model(family="gpt2")
    r, s = (random_adapter(model.blank(), seed) for seed in (1, 2))
    for stage in (
        Stage("rectify", "R", SIX, r, private=Private(s), alone=0.5),
        Stage("smooth", "S", SIX, targets="distilled"),
    ):
        alone = [fit(stage) for fit in trainers(model, **OPTIONS[option])]
        together = train_cohort(trainers(model, **OPTIONS[option]), [stage] * len(CLIENTS))
        for one, other in zip(alone, together, strict=True):
            assert furthest(vars(one), vars(other)) < 1e-10


def test_ranks_may_differ_by_client():
    model = new_model()
    stages = [
        Stage("rectify", "R", SIX, resize_rank(adapter(k), rank))
        for k, rank in enumerate((1, 4, 2))
    ]
    alone = [fit(stage) for fit, stage in zip(trainers(model), stages, strict=True)]
    for one, other in zip(alone, train_cohort(trainers(model), stages), strict=True):
        assert furthest(vars(one), vars(other)) < 1e-10
        assert all(one.shared[key].shape == other.shared[key].shape for key in one.shared)


def test_stages_that_are_not_alike_are_trained_apart():
    model = new_model()
    stages = [
        Stage("rectify", "R", SIX, R1),
        Stage("smooth", "S", SIX, targets="distilled"),
        Stage("rectify", "R", replace(SIX, steps=2), R1),
    ]
    alone = [fit(stage) for fit, stage in zip(trainers(model), stages, strict=True)]
    for one, other in zip(alone, train_cohort(trainers(model), stages), strict=True):
        assert furthest(vars(one), vars(other)) == 0


def test_what_a_cohort_leaves_in_the_model_is_of_one_client():
    model = new_model()
    train_cohort(trainers(model), [Stage("rectify", "R", SIX, R1)] * 3)
    layer = model._layers[model.paths[0]]
    assert layer.A[Stream.RECTIFY].dim() == layer.B[Stream.RECTIFY].dim() == 2


def test_clipping_is_torchs_for_each_client():
    gradients = [torch.randn(3, 4, 5) * torch.tensor([0.01, 1, 9])[:, None, None] for _ in range(2)]
    wanted = []
    for k in range(3):
        parameters = [torch.nn.Parameter(g[k].clone()) for g in gradients]
        for parameter in parameters:
            parameter.grad = parameter.detach().clone()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, 0.5))
        wanted.append((norm, [p.grad for p in parameters]))
    found = clip_each(gradients, 0.5)
    for k, (norm, clipped) in enumerate(wanted):
        assert found[k] == pytest.approx(norm, rel=1e-5)
        for g, right in zip(gradients, clipped, strict=True):
            torch.testing.assert_close(g[k], right)


def test_a_client_that_diverges_is_named():
    broken = {key: t * float("nan") for key, t in R1.items()}
    stages = [Stage("rectify", "R", SIX, R1), Stage("rectify", "R", SIX, broken)]
    with pytest.raises(UserError, match="'ben', round 1"):
        train_cohort(trainers(new_model())[:2], stages)


def test_an_error_in_a_half_ends_all_of_them_and_names_its_client():
    before = threading.active_count()
    cleaned = []

    def good(fit):
        try:
            fit(Stage("x", "R", SIX))
        finally:
            cleaned.append(True)

    def bad(fit):
        fit(Stage("x", "R", SIX))
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError) as caught:
        run_together({"ben": bad, "anna": good}, lambda asked: dict.fromkeys(asked, "done"))
    assert caught.value.__notes__ == ["at client 'ben'"]
    assert cleaned
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="training failed"):
        run_together({"anna": good, "ben": good}, lambda asked: fail())
    assert threading.active_count() == before


def fail():
    raise ValueError("training failed")


def test_halves_may_ask_different_numbers_of_times():
    seen = []

    def asks(times):
        return lambda fit: [fit(Stage(str(i), "R", SIX)) for i in range(times)]

    def train(asked):
        seen.append({name: stage.name for name, stage in asked.items()})
        return {name: stage.name for name, stage in asked.items()}

    done = run_together({"a": asks(1), "b": asks(3), "c": asks(0)}, train)
    assert done == {"a": ["0"], "b": ["0", "1", "2"], "c": []}
    assert seen == [{"a": "0", "b": "0"}, {"b": "1"}, {"b": "2"}]
