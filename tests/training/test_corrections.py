"""Corrections of FedProx, SCAFFOLD and FedDyn, and adapters in parts, in the real local trainer."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from fedsdr.algorithms.contract import (
    Fitted,
    Pull,
    Schedule,
    Stage,
)
from fedsdr.core import seeds
from fedsdr.core.adapters import (
    A_SUFFIX,
    B_SUFFIX,
    Adapter,
    Private,
    factor_of,
    norm,
    scale,
    select_tensors,
    subtract,
    unwrap_private,
    zeros_like,
)
from fedsdr.data.batches import collate_examples, shuffled_batches
from fedsdr.data.example import Example
from fedsdr.model.lora import Stream
from fedsdr.training.local import LocalTrainer
from support.tiny_models import SPECIALS, make, random_ids, start_adapter, two_streams
from support.tiny_models import random_adapter as random_like
from support.toy_rounds import furthest, same_bits

R = Stream.RECTIFY
PAD = SPECIALS.index("<end>")
TARGETS = ("q_proj", "down_proj")
DECAY, SEED, STEPS = 0.1, 5, 3
TIGHT, LOOSE = 0.7, 1e6  # gradient norms that always and never bind
SHORT = Schedule(STEPS, 1e-2)


def example(seed: int) -> Example:
    ids = random_ids(1, 10, seed)[0].tolist()
    return Example(tuple(ids[: 1 + seed % 5]), tuple(ids[5 : 7 + seed % 4]))


DATA = {"raw": [example(seed) for seed in range(7)]}


def train(stage: Stage, clip: float = LOOSE) -> Fitted:
    model = two_streams("llama", TARGETS, dtype=torch.float64)
    trainer = LocalTrainer(
        model, DATA, client="a", round=2, seed=SEED, batch_size=3, clip=clip,
        weight_decay=DECAY, pad=PAD,
    )  # fmt: skip
    return trainer(stage)


BLANK = start_adapter(two_streams("llama", TARGETS, dtype=torch.float64))
W0, W1, W2 = (random_like(BLANK, seed) for seed in (11, 12, 13))
UPPER = select_tensors(W0, lambda key: "layers.1" in key)
LOWER = select_tensors(W0, lambda key: "layers.0" in key)
STAGES = {
    "nothing": Stage("rectify", "R", SHORT, W0),
    "pull": Stage("rectify", "R", SHORT, W0, pull=Pull(W1, 0.8)),
    "pull towards the start": Stage("rectify", "R", SHORT, W0, pull=Pull(W0, 5.0)),
    "pull of what is shared": Stage(
        "rectify", "R", SHORT, LOWER, own=Private(UPPER), pull=Pull(LOWER, 5.0)
    ),
    "pull of a client's own": Stage(
        "personal", "R", SHORT, own=Private(W0), pull=Pull(W1, 0.8)
    ),
    "shift": Stage("rectify", "R", SHORT, W0, shift=scale(W2, 0.5)),
    "both": Stage("rectify", "R", SHORT, W0, pull=Pull(W1, 0.8), shift=scale(W2, 0.5)),
    "both, A only": Stage(
        "rectify", "R", SHORT, W0, pull=Pull(W1, 0.8), shift=scale(W2, 0.5), factors="A"
    ),
    "both, B only": Stage(
        "rectify", "R", SHORT, W0, pull=Pull(W1, 0.8), shift=scale(W2, 0.5), factors="B"
    ),
    "both, partly shared": Stage(
        "rectify", "R", SHORT, LOWER, own=Private(UPPER),
        pull=Pull(LOWER, 5.0), shift=select_tensors(W2, lambda key: key in LOWER),
    ),
}  # fmt: skip
every_stage = pytest.mark.parametrize("name", STAGES)


def plain(stage: Stage, clip: float) -> tuple[Adapter, Adapter]:
    """R after AdamW on loss + mu/2 |w - w0|^2 + <shift, w>, and the loss's own mean gradient.

    None of the library's training code: the weights W0 + 2 B A go into a plain model.
    """
    base = make("llama", dtype=torch.float64)
    weights = {name: p.detach() for name, p in base.named_parameters()}
    start = {**(stage.shared or {}), **unwrap_private(stage.own)}
    learns = ("A", "B") if stage.factors == "both" else (stage.factors,)
    r = {
        key: tensor.clone().requires_grad_(factor_of(key) in learns)
        for key, tensor in start.items()
    }
    trained = {key: tensor for key, tensor in r.items() if tensor.requires_grad}
    optimiser = torch.optim.AdamW(
        trained.values(), lr=stage.schedule.lr, weight_decay=DECAY, foreach=False, fused=False
    )
    draw = seeds.seeded_generator(SEED, "batches", stage.name, 2, "a")
    sums = zeros_like(start)
    for indices in itertools.islice(
        shuffled_batches(len(DATA["raw"]), 3, draw), stage.schedule.steps
    ):
        changed = dict(weights)
        for path in (key.removesuffix(A_SUFFIX) for key in r if key.endswith(A_SUFFIX)):
            change = 2.0 * r[path + B_SUFFIX] @ r[path + A_SUFFIX]
            changed[path + ".weight"] = changed[path + ".weight"] + change
        batch = collate_examples([DATA["raw"][i] for i in indices], PAD)
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}

        logits = functional_call(base, changed, kwargs=inputs).logits[:, :-1].log_softmax(-1)
        labels = batch.labels[:, 1:]
        picked = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        loss = -(picked * (labels >= 0)).sum() / (labels >= 0).sum()
        for key, gradient in zip(
            trained, torch.autograd.grad(loss, [*trained.values()], retain_graph=True), strict=True
        ):
            sums[key] += gradient
        objective = loss
        if stage.pull:
            for key in stage.pull.towards:
                distance = (r[key] - stage.pull.towards[key]).square().sum()
                objective = objective + stage.pull.strength / 2 * distance
        for key, shift in (stage.shift or {}).items():
            objective = objective + (shift * r[key]).sum()
        optimiser.zero_grad()
        objective.backward()
        length = math.sqrt(sum(float(t.grad.square().sum()) for t in trained.values()))
        assert (length > clip) == (clip == TIGHT)
        for tensor in trained.values():
            tensor.grad *= min(1.0, clip / length)
        optimiser.step()
    return {key: t.detach() for key, t in r.items()}, scale(sums, 1 / stage.schedule.steps)


@every_stage
@pytest.mark.parametrize("clip", [TIGHT, LOOSE], ids=["clipped", "unclipped"])
def test_corrections_are_terms_of_the_objective(name, clip):
    stage = STAGES[name]
    fitted, (wanted, _) = train(stage, clip), plain(stage, clip)
    assert furthest(unwrap_private(fitted.after), wanted) < 1e-6
    assert furthest(unwrap_private(fitted.after), unwrap_private(fitted.before)) > 1e-3


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.shared])
def test_the_mean_gradient_is_the_uncorrected_losss(name):
    stage = replace(STAGES[name], mean_gradient=True)
    # Clipping would show: it binds in every step.
    fitted, (_, mean) = train(stage, TIGHT), plain(stage, TIGHT)
    assert fitted.gradient.keys() == stage.shared.keys()
    assert furthest(fitted.gradient, select_tensors(mean, lambda key: key in stage.shared)) < 1e-6
    assert norm(fitted.gradient) > 0.1
    # To ask for it changes nothing else.
    other = train(STAGES[name], TIGHT)
    assert other.gradient == {}
    assert same_bits(other.after, fitted.after)


@pytest.mark.parametrize(("factors", "frozen"), [("A", "B"), ("B", "A")])
def test_a_frozen_factor_does_not_move_at_all(factors, frozen):
    """Nor has it a gradient, nor does weight decay, the pull or the shift reach it."""
    stage = STAGES[f"both, {factors} only"]
    fitted = train(replace(stage, mean_gradient=True))
    for key, start in W0.items():
        still = factor_of(key) == frozen
        assert torch.equal(fitted.shared[key], start) == still
        assert bool(fitted.gradient[key].any()) != still


def test_a_strong_pull_holds_the_adapter_back():
    """In few steps of AdamW, not to the same place; the free one goes further."""
    free = train(replace(STAGES["nothing"], schedule=Schedule(30, 1e-2)))
    held = train(replace(STAGES["pull towards the start"], schedule=Schedule(30, 1e-2)))
    assert norm(subtract(held.shared, W0)) < 0.7 * norm(subtract(free.shared, W0))


@pytest.mark.parametrize("correction", [{"pull": Pull(W1, 0.0)}, {"shift": zeros_like(W0)}])
def test_a_correction_of_nothing_changes_no_bit(correction):
    free = train(STAGES["nothing"])
    assert same_bits(train(replace(STAGES["nothing"], **correction)).after, free.after)


SHARES = {
    "all of it": lambda key: True,
    "none of it": lambda key: False,
    "A": lambda key: factor_of(key) == "A",
    "the lower block": lambda key: "layers.0" in key,
}


@pytest.mark.parametrize("share", SHARES)
def test_own_tensors_complete_r(share):
    """Whoever has which tensor, the same R is trained; only what was sent can be sent back."""
    shared = select_tensors(W0, SHARES[share])
    own = select_tensors(W0, lambda key: key not in shared)
    fitted = train(Stage("rectify", "R", SHORT, shared, own=Private(own), mean_gradient=True))
    assert same_bits(fitted.before, W0)
    assert fitted.shared.keys() == fitted.gradient.keys() == shared.keys()
    assert unwrap_private(fitted.own).keys() == own.keys()
    together = {**fitted.shared, **unwrap_private(fitted.own)}
    assert same_bits(together, fitted.after)
    assert same_bits(together, train(STAGES["nothing"]).after)


@pytest.mark.parametrize("share", ["none of it", "A", "the lower block"])
def test_what_nobody_has_starts_fresh_and_is_the_clients_own(share):
    shared = select_tensors(W0, SHARES[share])
    fitted = train(Stage("rectify", "R", SHORT, shared))
    before = unwrap_private(fitted.before)
    assert same_bits(select_tensors(before, lambda key: key in shared), shared)
    fresh = select_tensors(before, lambda key: key not in shared)
    for key, tensor in fresh.items():
        assert bool(tensor.any()) == (factor_of(key) == "A")
    assert unwrap_private(fitted.own).keys() == fresh.keys()
    assert fitted.shared.keys() == shared.keys()
    # Own tensors that are only some of the missing ones are taken, the others fresh.
    some_key = min(fresh)
    partly = train(Stage("rectify", "R", SHORT, shared, own=Private({some_key: W1[some_key]})))
    wanted = {**before, some_key: W1[some_key]}
    assert same_bits(partly.before, wanted)
