"""Soft targets against torch's own divergence, one text at a time, and what their teacher reads."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from fedsdr.algorithms.contract import Loss, Schedule, Stage
from fedsdr.core import seeds
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter, Private
from fedsdr.data.batches import shuffled_batches
from fedsdr.data.example import Example, Reference
from fedsdr.model import packing
from fedsdr.training.loss import token_losses
from fedsdr.training.soft import (
    ReferenceTeacher,
    forward_divergence,
    reverse_divergence,
    teacher_predictions,
)
from support.cohort_trainers import RECORD
from support.tiny_models import make, random_ids
from support.training_stages import (
    BESIDE_FOLD,
    DATA,
    PAD,
    PRIVATE,
    SEED,
    SHORT,
    R,
    S,
    adapter,
    new_model,
    trainer,
)

AGREEING = Loss("soft", "forward", 0.8, agreeing=True)
SCALING = 2.0  # alpha / rank of the tiny model's streams


def shown(examples: Sequence[Example]) -> list[Example]:
    """With prompts for a teacher, of other lengths than their own; every third has none."""
    made = []
    for i, example in enumerate(examples):
        prompt = tuple(random_ids(1, 2 + i % 4, seed=700 + i)[0].tolist())
        made.append(replace(example, reference=Reference(prompt, 5, RECORD) if i % 3 else None))
    return made


TAUGHT = {targets: shown(examples) for targets, examples in DATA.items()}


def in_weights(weights: Adapter, parts: Sequence[Adapter]) -> Adapter:
    """A plain model's weights with adapters put into them."""
    changed = dict(weights)
    for part in parts:
        for path in {key.rpartition(".lora_")[0] for key in part}:
            product = part[path + B_SUFFIX] @ part[path + A_SUFFIX]
            changed[path + ".weight"] = changed[path + ".weight"] + SCALING * product
    return changed


def predictions(weights: Adapter, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """log p of each token of the response by a plain model: (T, V)."""
    ids = torch.tensor([[*prompt, *response]])
    logits = functional_call(make("llama", dtype=torch.float64), weights, (ids,)).logits
    found: Tensor = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return found


def by_hand(loss: Loss, weights: Adapter, streams: Sequence[Adapter], example: Example) -> Tensor:
    """The loss of one example, added up over its tokens, by torch's own divergence."""
    student = predictions(in_weights(weights, streams), example.prompt, example.response)
    words = functional.nll_loss(student, torch.tensor(example.response), reduction="sum")
    if example.reference is None:
        return words
    teacher = predictions(weights, example.reference.prompt, example.response).detach()
    pair = (student, teacher) if loss.divergence == "forward" else (teacher, student)
    apart = functional.kl_div(*pair, reduction="none", log_target=True)
    total = words * 0
    for t, word in enumerate(example.response):
        followed = not loss.agreeing or int(teacher[t].argmax()) == word
        weight = loss.weight if followed else 0.0
        total = total + weight * apart[t].sum() - (1 - weight) * student[t, word]
    return total


def test_divergences_of_two_words_worked_by_hand():
    """p = (3/4, 1/4), q = (1/2, 1/2)."""
    p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert float(forward_divergence(teacher=p, student=q)) == pytest.approx(forward)
    assert float(reverse_divergence(teacher=p, student=q)) == pytest.approx(reverse)


@pytest.mark.parametrize("form", ["padded", "end to end"])
@pytest.mark.parametrize(
    "loss",
    [Loss("soft"), Loss("soft", "reverse"), Loss("soft", "forward", 0.3), AGREEING],
    ids=["forward", "reverse", "forward, weight 0.3", "agreeing"],
)
@pytest.mark.parametrize("trains", ["R", "S"])
def test_a_soft_stage_is_a_plain_loop_one_text_at_a_time(trains, loss, form, monkeypatch):
    """The teacher is W0 alone, whatever streams the student has."""
    monkeypatch.setattr(packing, "CALL", {"cpu": -1.0 if form == "end to end" else 6e6})
    stage = Stage("x", trains, SHORT, adapter(1), private=PRIVATE, targets="distilled", loss=loss)
    fit = trainer(new_model(), micro_batch=2, clip=1e6, weight_decay=0.0)
    fit.examples = TAUGHT
    fitted = fit(stage)
    weights = {n: p.detach() for n, p in make("llama", dtype=torch.float64).named_parameters()}
    frozen = adapter(2) if trains == "R" else adapter(1)
    start = adapter(1) if trains == "R" else adapter(2)
    trained = {key: tensor.clone().requires_grad_() for key, tensor in start.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=SHORT.lr, weight_decay=0.0)
    draw = seeds.seeded_generator(SEED, "batches", "x", 2, "a")
    total, tokens = 0.0, 0
    order = shuffled_batches(len(TAUGHT["distilled"]), 3, draw)
    for indices in itertools.islice(order, SHORT.steps):
        batch = [TAUGHT["distilled"][i] for i in indices]
        summed = torch.stack([by_hand(loss, weights, [trained, frozen], e) for e in batch]).sum()
        count = sum(len(example.response) for example in batch)
        optimiser.zero_grad()
        (summed / count).backward()
        optimiser.step()
        total, tokens = total + float(summed.detach()), tokens + count
    assert fitted.loss.weight == tokens
    assert fitted.loss.sum == pytest.approx(total, rel=1e-5)
    moved = fitted.after.number(
        lambda after: max(float((after[k] - t.detach()).abs().max()) for k, t in trained.items())
    )
    assert moved < 1e-5


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_a_teacher_that_reads_the_same_prompt_has_nothing_to_teach_an_untrained_model(divergence):
    blank = {k: t * 0 if k.endswith(B_SUFFIX) else t for k, t in adapter(1).items()}
    fit = trainer(new_model())
    same = [replace(e, reference=Reference(e.prompt, 5, RECORD)) for e in DATA["raw"]]
    fit.examples = {"raw": same}
    stage = Stage("x", "R", Schedule(1, 1e-2), blank, loss=Loss("soft", divergence))
    assert fit(stage).loss.value == pytest.approx(0.0, abs=1e-6)
    fit.examples = {"raw": shown(same)}
    assert fit(stage).loss.value > 0.01


def test_a_teacher_reads_no_stream_folded_ones_neither_and_leaves_them_as_they_were():
    model, examples = new_model(), TAUGHT["raw"][1:3]
    fit = trainer(model)
    for stream, part in fit.streams(Stage("x", "R", SHORT, BESIDE_FOLD, private=PRIVATE)).items():
        model.load(stream, part)
    found = []
    for streams in ([R, S], [*fit.streams(Stage("x", "R", SHORT, BESIDE_FOLD))], []):
        model.activate(*streams)
        found.append(teacher_predictions(model.model, examples, PAD))
        assert set(model._layers[model.paths[0]].active) == set(streams)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])
    weights = {n: p.detach() for n, p in make("llama", dtype=torch.float64).named_parameters()}
    wanted = [predictions(weights, e.reference.prompt, e.response) for e in examples]
    torch.testing.assert_close(found[0], torch.cat(wanted).to(found[0]))


def test_agreement_is_with_the_teachers_likeliest_token():
    """Its own first word is followed; a second one that it would not write is learnt."""
    model, given = new_model(), TAUGHT["raw"][1]
    fit = trainer(model)
    model.load(R, adapter(1))
    model.activate(R)

    def likeliest(*response: int) -> list[int]:
        asked = [replace(given, response=response)]
        return teacher_predictions(model.model, asked, PAD).argmax(-1).tolist()

    [first] = likeliest(0)
    other = likeliest(first, 0)[1] ^ 1
    example = replace(given, response=(first, other))
    batch = fit._batch([example])
    always, agreeing = (
        ReferenceTeacher(model.model, Loss("soft", agreeing=it), PAD).losses(batch, [example])
        for it in (False, True)
    )
    words = token_losses(model.model, batch)
    assert agreeing.tolist() == pytest.approx([float(always.detach()[0]), float(words.detach()[1])])
    assert (always - words).abs().min() > 0.01


def test_words_without_a_reference_are_learnt():
    model = new_model()
    fit, plain = trainer(model), DATA["raw"][:3]
    model.load(R, adapter(1))
    model.activate(R)
    batch = fit._batch(plain)
    found = ReferenceTeacher(model.model, Loss("soft"), PAD).losses(batch, plain)
    torch.testing.assert_close(found, token_losses(model.model, batch))


def test_checkpointed_and_dropped_inputs_are_the_students_alone():
    """Dropout changes what the student reads; a teacher has none to drop."""
    stage = Stage("x", "R", SHORT, adapter(1), loss=Loss("soft"))
    losses = []
    for options in ({}, {"checkpointing": True}, {"dropout": 0.5}):
        fit = trainer(new_model(), **options)
        fit.examples = TAUGHT
        losses.append(fit(stage).loss.sum)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)


def test_s_may_learn_softly_on_w0_alone():
    fit = trainer(new_model())
    fit.examples = TAUGHT
    stage = Stage("smooth", "S", SHORT, private=Private(adapter(2)), loss=Loss("soft"))
    fitted = fit(stage)
    assert fitted.loss.value > 0
    moved = fitted.after.number(
        lambda s: max(float((s[k] - adapter(2)[k]).abs().max()) for k in s if A_SUFFIX in k)
    )
    assert moved > 1e-3
