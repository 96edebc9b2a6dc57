"""The local trainer against a plain PyTorch loop, and what it must leave alone."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from fedsdr.algorithms.contract import Loss, Pull, Schedule, Stage
from fedsdr.core import seeds
from fedsdr.core.adapters import (
    A_SUFFIX,
    B_SUFFIX,
    FOLDED,
    Adapter,
    Private,
    plain_factors,
    rank_of,
    strip_prefix,
    unwrap_private,
)
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean
from fedsdr.data.batches import collate_examples, end_to_end, shuffled_batches
from fedsdr.data.example import Example
from fedsdr.model import packing
from fedsdr.model.lora import Stream
from fedsdr.training.local import _falls_alone
from fedsdr.training.loss import response_loss, summed_loss
from support.tiny_models import (
    make,
    random_adapter,
    random_ids,
    start_adapter,
)
from support.training_stages import (
    BESIDE_FOLD,
    DATA,
    DECAY,
    KEPT,
    LOOSE,
    PAD,
    PRIVATE,
    SEED,
    SENT,
    SHORT,
    STAGES,
    TIGHT,
    R,
    S,
    adapter,
    examples,
    new_model,
    trainer,
)


@pytest.fixture(params=["padded", "end to end"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches padded, as they are on a tiny model, and end to end, as if a call cost nothing."""
    forms = []

    def told(name: str, call: Any) -> Any:
        def made(*given: Any) -> Any:
            forms.append(name)
            return call(*given)

        return made

    monkeypatch.setattr("fedsdr.training.local.collate_examples", told("padded", collate_examples))
    monkeypatch.setattr("fedsdr.training.local.end_to_end", told("end to end", end_to_end))
    if request.param == "end to end":
        monkeypatch.setattr(packing, "CALL", {"cpu": -1.0})
    yield
    assert set(forms) == {request.param}


def close(a: Adapter, b: Adapter, tolerance: float) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=tolerance)


def same(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- The loss


def by_hand(logits: torch.Tensor, batch: list[Example]) -> torch.Tensor:
    """sum of -log f over the response tokens, token by token."""
    total = logits.new_zeros(())
    for row, example in zip(logits.log_softmax(-1), batch, strict=True):
        for i, token in enumerate(example.response):
            total = total - row[len(example.prompt) + i - 1, token]
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_that_of_the_response_tokens(family):
    model = make(family)
    for batch in (DATA["raw"], DATA["raw"][:1]):
        padded = collate_examples(batch, PAD)
        with torch.no_grad():
            wanted = sum(
                float(by_hand(model(torch.tensor([e.prompt + e.response])).logits, [e]))
                for e in batch
            )
        loss = response_loss(model, padded)
        assert loss.sum == pytest.approx(wanted, rel=1e-5)
        assert loss.weight == sum(len(example.response) for example in batch)
        assert float(summed_loss(model, padded).detach()) == loss.sum


def test_a_response_without_prompt_is_learnt_from_its_second_token():
    model = make("llama")
    ids = random_ids(1, 4)[0].tolist()
    loss = response_loss(model, collate_examples([Example((), tuple(ids))], PAD))
    wanted = response_loss(model, collate_examples([Example(tuple(ids[:1]), tuple(ids[1:]))], PAD))
    assert loss.sum == pytest.approx(wanted.sum)


# --- A stage


def plain_loop(
    stage: Stage, start: Adapter, company: list[Adapter], alone: list[int], clip: float
) -> tuple[Adapter, Mean]:
    """The stage without any of the library's model code: W0 + scale B A put into a plain model.

    company: what is frozen beside the trained stream; the last one is left out in steps `alone`.
    """
    base = make("llama", dtype=torch.float64)
    weights = {name: p.detach() for name, p in base.named_parameters()}
    whole = {key: tensor.clone() for key, tensor in start.items()}
    trained = {k: t.requires_grad_() for k, t in whole.items() if chosen_factor(stage, k)}
    optimiser = torch.optim.AdamW(
        trained.values(), lr=stage.schedule.lr, weight_decay=DECAY, foreach=False, fused=False
    )
    data = DATA[stage.targets]
    draw = seeds.seeded_generator(SEED, "batches", stage.name, 2, "a")
    batches = itertools.islice(shuffled_batches(len(data), 3, draw), stage.schedule.steps)
    total, tokens = 0.0, 0
    for number, indices in enumerate(batches):
        changed = dict(weights)
        for part in [whole, *(company[:-1] if number in alone else company)]:
            for path in {key.rpartition(".lora_")[0] for key in part}:
                name = path + ".weight"
                changed[name] = changed[name] + 2.0 * part[path + B_SUFFIX] @ part[path + A_SUFFIX]
        batch = [data[i] for i in indices]
        padded = collate_examples(batch, PAD)
        inputs = {"input_ids": padded.ids, "attention_mask": padded.mask}
        loss = by_hand(functional_call(base, changed, kwargs=inputs).logits, batch)
        count = sum(len(example.response) for example in batch)
        gradients = torch.autograd.grad(loss / count, list(trained.values()))
        pairs = zip(trained.items(), gradients, strict=True)
        gradients = [corrected(stage, key, tensor, g) for (key, tensor), g in pairs]
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for tensor, gradient in zip(trained.values(), gradients, strict=True):
            tensor.grad = gradient * min(1.0, clip / length)
        optimiser.step()
        total, tokens = total + float(loss.detach()), tokens + count
    return {key: tensor.detach() for key, tensor in whole.items()}, Mean(total, tokens)


def corrected(stage: Stage, key: str, value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """g + strength (w - towards) + shift."""
    if stage.pull is not None:
        gradient = gradient + stage.pull.strength * (value.detach() - stage.pull.towards[key])
    return gradient if stage.shift is None else gradient + stage.shift[key]


def chosen_factor(stage: Stage, key: str) -> bool:
    return stage.factors == "both" or f".lora_{stage.factors}." in key


HELD = Stage(
    "rectify", "R", SHORT, adapter(1), private=PRIVATE, pull=Pull(adapter(5), 0.8), shift=adapter(6)
)


def parts(stage: Stage) -> tuple[Adapter, list[Adapter]]:
    """The stream that a stage trains, and what is in company of it."""
    shared = stage.shared or {}
    r, s = {**plain_factors(shared), **unwrap_private(stage.own)}, unwrap_private(stage.private)
    folded = strip_prefix(shared, FOLDED)
    start, other = (r, s) if stage.trains == "R" else (s, r)
    return start, [part for part in (folded, other) if part]


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("clip", [TIGHT, LOOSE])
@pytest.mark.parametrize("name", [*STAGES, "R beside S, pulled and shifted"])
def test_a_stage_is_a_plain_training_loop(name, clip, micro_batch, form):
    stage, alone = STAGES.get(name, (HELD, []))
    start, company = parts(stage)
    fitted = trainer(new_model(), clip=clip, micro_batch=micro_batch)(stage)
    got = unwrap_private(fitted.after)
    assert same(unwrap_private(fitted.before), start)
    wanted, loss = plain_loop(stage, start, company, alone, clip)
    close(got, wanted, tolerance=1e-6)
    for key in start:
        assert torch.equal(got[key], start[key]) != chosen_factor(stage, key)
    assert fitted.gradient == {}
    assert fitted.loss.sum == pytest.approx(loss.sum, rel=1e-5)
    assert fitted.loss.weight == loss.weight
    assert fitted.examples == len(DATA["raw"])


@pytest.mark.parametrize("name", STAGES)
def test_only_what_the_server_sent_may_go_back_to_it(name):
    stage, _ = STAGES[name]
    fitted = trainer(new_model())(stage)
    after, sent = unwrap_private(fitted.after), stage.shared or {}
    if stage.trains == "S":
        assert (fitted.shared, fitted.own) == ({}, None)
        return
    assert same(fitted.shared, {key: after[key] for key in after if key in sent})
    assert same(unwrap_private(fitted.own), {key: after[key] for key in after if key not in sent})


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_changes_only_the_stream_it_trains(name):
    stage, _ = STAGES[name]
    model = new_model()
    before = {n: p.detach().clone() for n, p in model.model.named_parameters()}
    given_shared = {k: t.clone() for k, t in (stage.shared or {}).items()}
    trainer(model)(stage)
    stream = R if stage.trains == "R" else S
    other = S if stream is R else R
    shared = stage.shared or {}
    given = {
        R: {**plain_factors(shared), **unwrap_private(stage.own)},
        S: unwrap_private(stage.private),
        Stream.FOLDED: strip_prefix(shared, FOLDED),
    }
    for frozen in (other, Stream.FOLDED):
        if given[frozen]:
            assert same(model.read(frozen), given[frozen])
    for n, p in model.model.named_parameters():
        if not n.endswith((".R", ".S", ".F")):
            assert torch.equal(p, before[n])
        assert not p.requires_grad
        assert p.grad is None or n.endswith(f".{stream}")
    assert same(stage.shared or {}, given_shared)


def test_a_stage_without_r_does_not_see_what_the_model_holds():
    """S is trained on W0 alone: the same whether R holds zeros or anything else."""
    stage, _ = STAGES["S on W0 alone"]
    fitted = []
    for size in (0.0, 5.0):
        model = new_model()
        model.load(R, random_adapter(model.read(R), seed=3, size=size))
        fitted.append(unwrap_private(trainer(model)(stage).after))
    assert same(*fitted)
    beside = trainer(new_model())(STAGES["S beside R"][0])
    assert not same(fitted[0], unwrap_private(beside.after))


def test_a_stage_is_deterministic_and_leaves_no_trace_for_the_next():
    model = new_model()
    first = [trainer(model)(stage) for stage, _ in STAGES.values()]
    again = [trainer(model)(stage) for stage, _ in reversed(STAGES.values())][::-1]
    for a, b in zip(first, again, strict=True):
        assert same(a.shared, b.shared)
        assert a.loss == b.loss
        assert same(unwrap_private(a.before), unwrap_private(b.before))
        assert same(unwrap_private(a.after), unwrap_private(b.after))


@pytest.mark.parametrize("changes", [{"client": "b"}, {"round": 3}, {"seed": 6}])
def test_batches_depend_on_client_round_and_seed(changes):
    stage, _ = STAGES["R alone"]
    wanted = trainer(new_model())(stage).shared
    assert same(trainer(new_model())(stage).shared, wanted)
    assert not same(trainer(new_model(), **changes)(stage).shared, wanted)


# --- A stage that learns from the client's own model


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("targets", ["raw", "distilled"])
@pytest.mark.parametrize("shared", [adapter(1), BESIDE_FOLD], ids=["R", "R and what is folded"])
def test_consolidating_is_a_plain_loop_of_distillation(shared, targets, micro_batch, form):
    """W0 + R0 + S teaches W0 + R: KL over the response tokens, written out, on a plain model."""
    stage = Stage(
        "consolidate",
        "R",
        SHORT,
        shared,
        private=PRIVATE,
        targets=targets,
        loss=Loss("consolidation"),
    )
    fitted = trainer(new_model(), micro_batch=micro_batch)(stage)
    base = make("llama", dtype=torch.float64)
    weights = {name: p.detach() for name, p in base.named_parameters()}
    r0, s, folded = plain_factors(shared), unwrap_private(PRIVATE), strip_prefix(shared, FOLDED)
    trained = {key: tensor.clone().requires_grad_() for key, tensor in r0.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=DECAY, foreach=False)
    draw = seeds.seeded_generator(SEED, "batches", "consolidate", 2, "a")
    total, tokens = 0.0, 0
    for indices in itertools.islice(shuffled_batches(len(DATA[targets]), 3, draw), SHORT.steps):
        batch = [DATA[targets][i] for i in indices]
        loss, count = torch.zeros(()), 0
        for example in batch:
            ids = torch.tensor([example.prompt + example.response])
            first = len(example.prompt) - 1
            p, q = (
                functional_call(base, with_adapters(weights, parts), (ids,))
                .logits[0, first:-1].float().softmax(-1)
                for parts in ([r0, s, folded], [trained, folded])
            )  # fmt: skip
            loss = loss + (p.detach() * (p.detach() / q).log()).sum()
            count += len(example.response)
        gradients = torch.autograd.grad(loss / count, list(trained.values()))
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for tensor, gradient in zip(trained.values(), gradients, strict=True):
            tensor.grad = gradient * min(1.0, TIGHT / length)
        optimiser.step()
        total, tokens = total + float(loss.detach()), tokens + count
    assert fitted.loss.sum == pytest.approx(total, rel=1e-3)
    assert fitted.loss.weight == tokens
    close(fitted.shared, {k: t.detach() for k, t in trained.items()}, tolerance=1e-3)
    assert max(float((fitted.shared[k] - r0[k]).abs().max()) for k in r0) > 0.02


def with_adapters(weights: Adapter, parts: list[Adapter]) -> Adapter:
    changed = dict(weights)
    for part in parts:
        for path in {key.rpartition(".lora_")[0] for key in part}:
            product = part[path + B_SUFFIX] @ part[path + A_SUFFIX]
            changed[path + ".weight"] = changed[path + ".weight"] + 2.0 * product
    return changed


def test_without_anything_in_s_teacher_and_student_are_one_model():
    nothing = Private({key: torch.zeros_like(t) for key, t in adapter(2).items()})
    stage = Stage(
        "consolidate",
        "R",
        Schedule(1, 1e-2),
        adapter(1),
        private=nothing,
        loss=Loss("consolidation"),
    )
    assert trainer(new_model())(stage).loss.value == pytest.approx(0.0, abs=1e-6)
    assert trainer(new_model())(replace(stage, private=PRIVATE)).loss.value > 0.01


# --- Fresh streams


def fresh(stage: str = "smooth", **changes: Any) -> Adapter:
    asked = Stage(stage, "S", Schedule(1, 1e-3), targets="distilled")
    return unwrap_private(trainer(new_model(), **changes)(asked).before)


def test_a_private_stream_starts_fresh_where_none_is_given():
    start = fresh()
    like = start_adapter(new_model())
    assert start.keys() == like.keys()
    for key, tensor in start.items():
        if key.endswith(B_SUFFIX):
            assert not tensor.any()
        else:
            assert 0 < float(tensor.abs().max()) <= 1 / math.sqrt(tensor.shape[1])
    assert same(fresh(), start)


def test_fresh_streams_differ_by_stage_client_round_and_seed():
    starts = [fresh(), fresh("personal"), fresh(client="b"), fresh(round=3), fresh(seed=6)]
    for a, b in itertools.combinations(starts, 2):
        assert not same(a, b)


def test_what_of_r_nobody_has_yet_starts_fresh_and_stays_with_the_client():
    stage = Stage("rectify", "R", Schedule(1, 1e-3), SENT)
    fitted = trainer(new_model())(stage)
    before = unwrap_private(fitted.before)
    assert same({key: before[key] for key in SENT}, SENT)
    assert not any(before[key].any() for key in KEPT)
    assert unwrap_private(fitted.own).keys() == KEPT.keys()


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_a_fresh_private_stream_may_have_a_rank_of_its_own(rank):
    model = new_model()
    stage = Stage("smooth", "S", SHORT, adapter(1), targets="distilled")
    fitted = trainer(model, smoothing_rank=rank)(stage)
    start, got = unwrap_private(fitted.before), unwrap_private(fitted.after)
    assert rank_of(start) == rank_of(got) == rank_of(model.read(S)) == rank
    wanted, _ = plain_loop(stage, start, [adapter(1)], [], TIGHT)  # by the same scale alpha / rank
    close(got, wanted, tolerance=1e-6)
    assert rank_of(model.read(R)) == model.rank


def test_a_rank_of_the_private_stream_leaves_fresh_parts_of_r_and_old_streams_alone():
    half = Stage("rectify", "R", SHORT, SENT)
    plain, split = trainer(new_model())(half), trainer(new_model(), smoothing_rank=1)(half)
    assert same(unwrap_private(split.before), unwrap_private(plain.before))
    stage, _ = STAGES["S on W0 alone"]
    assert same(
        unwrap_private(trainer(new_model(), smoothing_rank=1)(stage).before),
        unwrap_private(PRIVATE),
    )


@pytest.mark.parametrize("fade", [0.0, 0.5, 1.0])
def test_a_stream_to_be_trained_starts_faded(fade):
    stage, _ = STAGES["S beside R"]
    fitted = trainer(new_model())(replace(stage, fade=fade))
    for key, tensor in unwrap_private(fitted.before).items():
        wanted = adapter(2)[key] * (fade if key.endswith(B_SUFFIX) else 1)
        assert torch.equal(tensor, wanted)
    beside = replace(STAGES["R beside S"][0], fade=fade)
    assert same(
        trainer(new_model())(beside).shared, trainer(new_model())(STAGES["R beside S"][0]).shared
    )


# --- Company


def streams_by_step(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Stream, ...]]:
    model = new_model()
    seen = []

    def loss(module: torch.nn.Module, batch: Any) -> torch.Tensor:
        seen.append(model._layers[model.paths[0]].active)
        return summed_loss(module, batch)

    monkeypatch.setattr("fedsdr.training.local.summed_loss", loss)
    trainer(model)(stage)
    return seen


@pytest.mark.parametrize(
    ("steps", "share", "alone"),
    [(10, 0.0, 0), (10, 0.1, 1), (10, 0.5, 5), (7, 0.5, 3), (10, 0.7, 7), (4, 1.0, 4)],
)
def test_the_trained_stream_is_alone_in_the_given_share_of_steps(monkeypatch, steps, share, alone):
    private = Private(adapter(2))
    stage = Stage("rectify", "R", Schedule(steps, 1e-4), adapter(1), private=private, alone=share)
    seen = streams_by_step(stage, monkeypatch)
    assert len(seen) == steps
    assert seen.count((R,)) == alone
    assert seen.count((R, S)) == steps - alone


def test_half_is_every_second_step(monkeypatch):
    stage = Stage("x", "R", Schedule(4, 1e-4), adapter(1), private=Private(adapter(2)), alone=0.5)
    assert streams_by_step(stage, monkeypatch) == [(R, S), (R,), (R, S), (R,)]


@given(st.integers(1, 200), st.floats(0, 1))
def test_a_share_of_the_steps_is_spread_evenly(steps, share):
    alone = 0
    for step in range(steps):
        alone += _falls_alone(step, share)
        assert abs(alone - (step + 1) * share) < 1


# --- Divergence


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_client_round_stage_and_cure(bad):
    broken = adapter(1)
    broken["model.layers.1.mlp.down_proj" + B_SUFFIX][:] = bad
    stage = Stage("rectify", "R", Schedule(3, 0.25), shared=broken)
    with pytest.raises(UserError) as caught:
        trainer(new_model(), client="clinic", round=7)(stage)
    for part in ("'clinic'", "round 7", "'rectify'", "step 1", "0.25", "lower the learning rate"):
        assert part in str(caught.value)


def test_an_adapter_that_is_no_number_is_found_at_the_end_of_a_stage():
    stage, broken = STAGES["R alone"][0], adapter(1)
    broken["model.layers.1.mlp.down_proj" + B_SUFFIX][:] = math.nan
    words = rf"adapter became NaN .* stage {stage.name!r}, step {stage.schedule.steps}, "
    with pytest.raises(UserError, match=words):
        trainer(new_model()).fitted(stage, Mean(1.0, 1.0), adapter(1), broken, {})


def test_divergence_later_in_a_stage_is_found(monkeypatch):
    calls = itertools.count(1)

    def loss(module: torch.nn.Module, batch: Any) -> torch.Tensor:
        return summed_loss(module, batch) * (math.nan if next(calls) == 3 else 1)

    monkeypatch.setattr("fedsdr.training.local.summed_loss", loss)
    with pytest.raises(UserError, match="step 3"):
        trainer(new_model())(STAGES["R alone"][0])


def test_a_gradient_without_bound_is_found_where_the_loss_is_finite(monkeypatch):
    def loss(module: torch.nn.Module, batch: Any) -> torch.Tensor:
        finite = summed_loss(module, batch)
        finite.register_hook(lambda gradient: gradient * math.inf)
        return finite

    monkeypatch.setattr("fedsdr.training.local.summed_loss", loss)
    with pytest.raises(UserError, match=r"norm became .*step 1"):
        trainer(new_model())(STAGES["R alone"][0])


# Rehearsal


def test_rehearsed_examples_fill_their_places_of_every_batch_and_leave_the_others_alone():
    again = examples(2, seed=3)
    stage, _ = STAGES["S beside R"]
    mixed = trainer(new_model(), batch_size=5, rehearsed=2)
    mixed.examples = {**DATA, "rehearsed": again}
    plain = trainer(new_model(), batch_size=3)
    for both, own in itertools.islice(
        zip(mixed.batches(stage), plain.batches(stage), strict=False), 8
    ):
        assert both[:3] == own
        assert sorted(both[3:], key=again.index) == again


def test_a_client_with_few_records_rehearses_fewer():
    stage, _ = STAGES["S beside R"]
    few = trainer(new_model(), batch_size=20, rehearsed=10)
    few.examples = {kind: list(each)[:2] for kind, each in DATA.items()} | {
        "rehearsed": examples(9, seed=3)
    }
    batch = next(iter(few.batches(stage)))
    assert len(batch) == 4  # two of ten own ones, and two of ten
