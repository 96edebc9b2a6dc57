"""The plan of a run: samples, bytes, steps, arithmetic, memory and hours of every method."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from fedsdr.algorithms.participation import RoundOptions, cohort_of, cohort_size, is_due
from fedsdr.core.adapters import Adapter, layer_paths
from fedsdr.data.records import ClientData
from fedsdr.estimate.arithmetic import Arithmetic, count_operations, decoding_steps
from fedsdr.estimate.hardware import Hardware
from fedsdr.estimate.memory import Memory, cache_bytes, held_activations, logits_bytes
from fedsdr.estimate.tokens import CHARACTERS, ClientPlan, Counter, client_plan, mean_batch
from fedsdr.estimate.traffic import Cohorts, Traffic, method_traffic, traced_stages
from fedsdr.model.base import DTYPES, choose_device, choose_dtype, context_positions
from fedsdr.model.blocks import BlockChoice
from fedsdr.model.experts import experts_notice
from fedsdr.model.fit import loaded_bytes
from fedsdr.model.lora import TwoStreamModel
from fedsdr.model.outline import model_outline
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.recipe.sections.rehearsal import Rehearsal

SECONDS_AN_HOUR = 3600
UTILISATION = 0.4  # of the measured rate of matrix products, that a training step reaches
ASSUMPTIONS: Final = (
    "parameters, adapters and bytes sent are exact; so is who takes part in which round",
    "training costs 4 N operations a token, N the weights of matrix products: the base is "
    "frozen, so 2 N forward and 2 N for the inputs' gradient (Kaplan et al. 2020, Sec. 2.1), "
    "and more for adapters and attention",
    "a batch is as long as its longest record, though much of its padding is avoided, and "
    "rewrites are as long as raw responses",
    "responses that clients' models sample while they learn are as long as raw ones",
    "each record is rewritten once; refused ones are tried again, up to distill.attempts",
    "activations are those of the longest batch, attention in its plain form: fused kernels "
    "keep less",
    "memory of the allocator, of libraries and of the server's copies of adapters is not counted",
)


@dataclass(frozen=True)
class ModelPlan:
    """parameters: of the base. adapted: layers with LoRA. lora: one stream's parameters."""

    path: str
    parameters: int
    adapted: int
    lora: int
    dtype: str
    quantisation: str
    device: str
    weights: int  # bytes
    experts: str = ""  # of a mixture: which part of it is adapted


@dataclass(frozen=True)
class Rewrites:
    """Distillation, once for all methods: requests, their prompts' tokens, the tokens written
    if rewrites are as long as their references, and the most that one attempt and all attempts
    can write."""

    requests: int
    prompt_tokens: int
    tokens: int
    most_tokens: int
    attempts: int
    flops: float
    hours: float | None


@dataclass(frozen=True)
class Rehearsals:
    """Rehearsal of all methods, what several share once: prompts, and the most tokens of them and
    of the base model's answers; nothing where no method rehearses."""

    prompts: int = 0
    most_tokens: int = 0
    hours: float | None = 0.0


@dataclass(frozen=True)
class MethodPlan:
    """One method. tokens: trained on, padding included. shown: those that teachers read, sampled:
    those that clients' models write while they learn. flops: of training and evaluation."""

    name: str
    rounds: int
    steps: int
    tokens: int
    shown: int
    sampled: int
    flops: float
    evaluation_flops: float
    traffic: Traffic
    distils: bool
    hours: float | None


@dataclass(frozen=True)
class RunPlan:
    """What a run takes, by the assumptions that it lists."""

    model: ModelPlan
    clients: tuple[ClientPlan, ...]
    rewrites: Rewrites
    rehearsed: Rehearsals
    methods: tuple[MethodPlan, ...]
    memory: Memory
    hardware: Hardware | None
    assumptions: tuple[str, ...]

    @property
    def hours(self) -> float | None:
        """Of the whole run; None without a hardware."""
        if self.hardware is None:
            return None
        distils = any(each.distils for each in self.methods)
        rewriting = (self.rewrites.hours or 0.0) if distils else 0.0
        rewriting += self.rehearsed.hours or 0.0
        return rewriting + sum(each.hours or 0.0 for each in self.methods)


def estimate_run(
    methods: Sequence[Method],
    clients: Sequence[ClientData],
    hardware: Hardware | None = None,
    utilisation: float = UTILISATION,
    path: str | None = None,
) -> RunPlan:
    """The plan of a run's methods, its own the last, without loading any weight.

    clients: as `fedsdr.data.partition.build_clients` gives them. hardware: for hours. path: of the
    model folder, where it is not the recipe's (the lab's). Raises `UserError` for a model whose
    configuration is not here.
    """
    recipe = methods[-1].recipe
    place = path or recipe.model.path
    base = model_outline(place)
    model, first, blocks = model_plan(recipe, place, base)
    context = context_positions(base.config)
    most = min(recipe.model.max_length, context)
    counter = Counter(recipe, place)
    plans = tuple(client_plan(client, counter, recipe, most, context) for client in clients)
    work = count_operations(base, model.lora, blocks)
    timer = Timer(hardware, utilisation, model.weights)
    plan = tuple(method_plan(each, plans, first, work, timer) for each in methods)
    attempts = max(each.recipe.distill.attempts for each in methods)
    rewrites = rewrites_plan(methods, plans, attempts, work, timer)
    distils = any(each.distils or each.sampled for each in plan)
    taught = any(each.recipe.has_teacher for each in methods)
    memory = memory_plan(methods, base, plans, model, distils, taught)
    notes = plan_assumptions(recipe, model, counter, plans, memory, plan, timer)
    rehearsed = rehearsal_plan(methods, work, timer)
    return RunPlan(model, plans, rewrites, rehearsed, plan, memory, hardware, notes)


def model_plan(
    recipe: Recipe, place: str, base: Any
) -> tuple[ModelPlan, Adapter, BlockChoice | None]:
    """The plan of an outline (`fedsdr.model.outline`), an adapter of it on the meta device, and the
    blocks that carry adapters (None: all)."""
    device = choose_device(recipe.model.device)
    dtype = choose_dtype(recipe.dtype, device)
    options = recipe.lora
    two = TwoStreamModel(
        copy.copy(base), options.targets, options.rank, options.alpha, options.layers
    )
    with torch.device("meta"):
        first = two.blank()
    two.detach()
    model = ModelPlan(
        place, base.num_parameters(), len(layer_paths(first)),
        sum(tensor.numel() for tensor in first.values()), str(dtype).removeprefix("torch."),
        recipe.model.quantisation, str(device),
        loaded_bytes(place, base, dtype, recipe.model.quantisation),
        experts_notice(base, layer_paths(first)),
    )  # fmt: skip
    return model, first, two.blocks


@dataclass(frozen=True)
class Timer:
    """Turns operations into hours; None without a hardware."""

    hardware: Hardware | None
    utilisation: float
    weights: int

    def computing(self, flops: float) -> float | None:
        if self.hardware is None:
            return None
        return flops / (self.hardware.flops * self.utilisation) / SECONDS_AN_HOUR

    def training(self, flops: float, sampling: float, steps: int) -> float | None:
        """flops: without those of sampling responses, in so many steps."""
        learning, writing = self.computing(flops), self.decoding(sampling, steps)
        return None if learning is None or writing is None else learning + writing

    def decoding(self, flops: float, steps: int) -> float | None:
        """A step reads all weights once, however few tokens it writes."""
        reading = 0.0 if self.hardware is None else self.weights * steps / self.hardware.bandwidth
        hours = self.computing(flops)
        return None if hours is None else max(hours, reading / SECONDS_AN_HOUR)


def cohorts_of(recipe: Recipe, names: Sequence[str]) -> Cohorts:
    """The clients of each round, sampled as the run itself will sample them."""
    own = recipe.federation
    if own.pooled:
        return [["all"]] * own.rounds
    options = RoundOptions(
        recipe.seed, own.rounds, own.participation, recipe.evaluate.every,
        late=own.late, late_round=own.late_round,
    )  # fmt: skip
    return [cohort_of(names, options, t) for t in range(1, own.rounds + 1)]


def method_plan(
    method: Method,
    clients: Sequence[ClientPlan],
    first: Adapter,
    work: Arithmetic,
    timer: Timer,
) -> MethodPlan:
    """Steps, tokens, operations and traffic of one method over all its rounds."""
    recipe, federation = method.recipe, method.recipe.federation
    names = [client.name for client in clients]
    cohorts = cohorts_of(recipe, names)
    batches = {client.name: client.batch for client in clients}
    batches["all"] = mean_batch([*batches.values()])
    many = cohort_size(len(names), federation.participation) if federation.pooled else 1
    asked = traced_stages(method.algorithm, first) if federation.rounds else []
    batch_size, again = recipe.local.batch_size, recipe.model.gradient_checkpointing
    rehearsed = recipe.rehearsal.examples(batch_size)
    own = 1 - rehearsed / batch_size  # share of a batch
    longest = min(recipe.rehearsal.most_tokens, recipe.model.max_length)
    steps, tokens, shown, sampled, decoded = 0, 0.0, 0.0, 0.0, 0.0
    flops, sampling = 0.0, 0.0
    for batch in (batches[client] for cohort in cohorts for client in cohort):
        padded = own * batch.padded + rehearsed * longest
        for stage in asked:
            frozen = (1 - stage.alone) * (stage.private is not None and stage.trains == "R")
            frozen += stage.trains == "S" and (stage.shared or stage.own) is not None
            count = stage.schedule.steps * many
            steps += count
            tokens += count * padded
            length = padded / batch_size
            flops += work.training(count * padded, length, frozen, again)
            if stage.loss.kind == "consolidation":  # whose teacher reads the same
                flops += work.forward(count * padded, length)
            if stage.loss.kind in ("soft", "on_policy"):
                read = own * batch.shown + rehearsed * longest
                shown += count * read
                flops += work.forward(count * read, read / batch_size)
            if stage.loss.kind == "on_policy":
                sampled += count * batch.sampled
                decoded += count * batch.longest
                sampling += work.forward(count * padded, length)
    judged = sum(
        is_due(t, federation.rounds, recipe.evaluate.every) for t in range(federation.rounds + 1)
    )
    judged += recipe.evaluate.personal and federation.rounds > 0
    held_out = sum(client.held_out_tokens for client in clients)
    evaluation = judged * work.forward(held_out, recipe.model.max_length / 2)
    return MethodPlan(
        method.name, federation.rounds, steps, round(tokens), round(shown), round(sampled),
        flops + sampling, evaluation, method_traffic(method, first, cohorts), federation.rewrites,
        timer.training(flops + evaluation, sampling, round(decoded)),
    )  # fmt: skip


def rewrites_plan(
    methods: Sequence[Method],
    clients: Sequence[ClientPlan],
    attempts: int,
    work: Arithmetic,
    timer: Timer,
) -> Rewrites:
    """Requests, tokens and operations of rewriting all clients' records, once for all methods that
    generate alike."""
    recipe = methods[-1].recipe
    asked = [request for client in clients for request in client.rewriting]
    prompts = sum(request.prompt for request in asked)
    tokens = sum(min(request.reference, request.limit) for request in asked)
    flops = sum(work.forward(r.prompt + r.reference, r.prompt + r.reference / 2) for r in asked)
    alike: dict[tuple[float, float, float], list[Distill]] = {}
    for each in [m.recipe for m in methods if m.recipe.federation.rewrites] or [recipe]:
        options = each.distill
        key = options.contrast, options.contrast_floor, options.temperature
        alike.setdefault(key, []).append(options)
    many = len(alike)
    steps = 0
    for client in clients:
        lengths = sorted((r.prompt, r.limit, r.reference) for r in client.rewriting)
        steps += sum(decoding_steps([each[2] for each in lengths], recipe.distill.batch_size))
    flops *= sum(map(reading_passes, alike.values()))
    return Rewrites(
        many * len(asked), many * prompts, many * tokens, many * sum(r.limit for r in asked),
        attempts, flops, timer.decoding(flops, many * steps),
    )  # fmt: skip


def reading_passes(alike: Sequence[Distill]) -> int:
    """How often a rewrite is read, by methods that generate alike."""
    passes = 2 if alike[0].contrast else 1  # with the reference and without
    for options in alike:
        if "self" in options.checks:  # each rewrite is read again with every reference
            return passes + 1 + options.self_check.references
    return passes


def rehearsals_of(methods: Sequence[Method]) -> set[Rehearsal]:
    """The rehearsals of all methods, but for how much of a batch they are."""
    return {
        m.recipe.rehearsal.model_copy(update={"share": 1.0}) for m in methods if m.recipe.rehearses
    }


def rehearsal_plan(methods: Sequence[Method], work: Arithmetic, timer: Timer) -> Rehearsals:
    """Rehearsal of all methods; prompts and answers as long as they may be."""
    rows, prompts, tokens, flops, steps = methods[-1].recipe.distill.batch_size, 0, 0, 0.0, 0
    for each in rehearsals_of(methods):
        length, made = each.most_tokens, each.count * each.most_tokens
        prompts, tokens = prompts + each.count, tokens + made
        flops += work.forward(made, length / 2)
        steps += math.ceil(each.count / rows) * length
    return Rehearsals(prompts, tokens, timer.decoding(flops, steps) if prompts else 0.0)


def memory_plan(
    methods: Sequence[Method],
    base: Any,
    clients: Sequence[ClientPlan],
    model: ModelPlan,
    distils: bool,
    taught: bool,
) -> Memory:
    """Peak memory of training and of rewriting, from the longest records.

    distils: whether texts are generated. taught: whether a loss compares with a teacher.
    """
    recipe = methods[-1].recipe
    local, lora, dtype = recipe.local, recipe.lora, DTYPES[model.dtype]
    many = 1 if local.cohort == "auto" else min(local.cohort, len(clients))  # clients at once
    rows = many * min(local.micro_batch or local.batch_size, local.batch_size)
    rehearsed = max((each.most_tokens for each in rehearsals_of(methods)), default=0)
    length = max(min(rehearsed, recipe.model.max_length), *(c.longest for c in clients))
    two = TwoStreamModel(base.to(dtype), lora.targets, lora.rank, lora.alpha, lora.layers)
    held = held_activations(
        two, rows, length, recipe.model.gradient_checkpointing, recipe.lora.dropout
    )
    longest = max((r.prompt + r.limit for c in clients for r in c.rewriting), default=0)
    contrasted = any(m.recipe.distill.contrast for m in methods if m.recipe.federation.rewrites)
    longest = (2 if contrasted else 1) * longest if distils else 0  # read with two prompts
    generated = recipe.distill.batch_size * max(longest, rehearsed)
    vocabulary = base.config.get_text_config().vocab_size
    return Memory(
        weights=model.weights,
        adapters=many * 3 * 4 * model.lora,  # R, S and what is folded, float32
        optimiser=many * 3 * 4 * model.lora,
        activations=held,
        logits=logits_bytes(rows * length, vocabulary, dtype, taught),
        cache=cache_bytes(base.config, generated, dtype),
    )


def plan_assumptions(
    recipe: Recipe,
    model: ModelPlan,
    counter: Counter,
    clients: Sequence[ClientPlan],
    memory: Memory,
    methods: Sequence[MethodPlan],
    timer: Timer,
) -> tuple[str, ...]:
    """The assumptions behind the numbers of a plan, a sentence each."""
    notes = [*ASSUMPTIONS]
    if recipe.local.cohort == "auto":
        notes.append(
            "one client is trained at a time; local.cohort = 'auto' takes what memory there is"
        )
    if counter.chat is None:
        notes.append(f"no tokenizer in the model folder: a token is {CHARACTERS} characters")
    if memory.activations is None:
        notes.append("this architecture cannot be traced: activations are missing from memory")
    if model.experts:
        notes.append(model.experts)
    if not all(each.traffic.exact for each in methods):
        notes.append("what is folded grows with every round: its downloads are the most possible")
    if left := sum(client.left_out for client in clients):
        notes.append(f"{left} records do not fit into model.max_length and are left out")
    if timer.hardware is not None:
        notes.append(
            f"training and rewriting reach {timer.utilisation:.0%} of the rate of matrix "
            f"products ({timer.hardware.flops / 1e12:.3g} TFLOP/s: {timer.hardware.name}); a step "
            "of rewriting reads all weights once from memory"
        )
    return tuple(notes)
