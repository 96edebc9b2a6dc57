"""`--dry-run`: the plan of a run, printed; nothing is loaded and nothing is written."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsdr.core.console import Grid, print_grid
from fedsdr.estimate.hardware import Hardware, measure_rates
from fedsdr.estimate.memory import Memory
from fedsdr.estimate.plan import MethodPlan, RunPlan, estimate_run
from fedsdr.model.base import choose_device, choose_dtype
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report.text import format_size
from fedsdr.workflows.prepare import Setting, plan_folder, prepare_run
from fedsdr.workflows.run_folder import check_folder


def dry_run(
    recipe: Recipe, out: Path | None, seeds: Sequence[int], flops: float | None, resume: bool
) -> None:
    """Check all that a run would check but the weights, and print what it would take."""
    setting = prepare_run(recipe, weights=False)
    if out is not None:
        check_folder(out, recipe, resume)
    print_plan(plan_of(setting, flops), Console(), len(seeds))


def plan_of(setting: Setting, flops: float | None = None) -> RunPlan:
    """flops: operations a second, instead of measuring this device."""
    recipe = setting.recipe
    device = choose_device(recipe.model.device)
    hardware = (
        measure_rates(device, choose_dtype(recipe.dtype, device))
        if flops is None
        else Hardware("as given", flops, float("inf"))
    )
    with plan_folder(recipe) as path:
        return estimate_run(recipe, setting.clients, hardware, path=path)


def print_plan(plan: RunPlan, console: Console, runs: int = 1) -> None:
    model = plan.model
    console.print(
        f"model: {model.path}, {model.parameters:,} parameters, {model.dtype}"
        f"{'' if model.quantisation == 'none' else ', ' + model.quantisation}, on {model.device}"
        f"\nLoRA: {model.adapted} layers, {model.lora:,} parameters a stream",
        highlight=False,
    )
    rows = []
    for each in plan.clients:
        numbers = (each.samples, each.tokens, each.response_tokens, each.left_out, each.held_out)
        rows.append([each.name, *(f"{number:,}" for number in numbers)])
    heads = ("client", "samples", "tokens", "response tokens", "left out", "held out")
    print_grid(Grid(heads, rows), console)
    print_costs(plan, console, runs)


def print_costs(plan: RunPlan, console: Console, runs: int = 1) -> None:
    """What rewriting and each method take, in bytes, memory and hours."""
    if distilling := _rewriting(plan):
        console.print(distilling, highlight=False)
    print_grid(Grid(METHOD_COLUMNS, list(map(_method, plan.methods))), console)
    console.print(_memory(plan.memory), highlight=False)
    console.print(
        f"in all: {format_hours(plan.hours)}" + (f" a seed, for {runs} seeds" if runs > 1 else ""),
        highlight=False,
    )
    for note in plan.assumptions:
        console.print(f"- {note}", highlight=False, style="dim")


METHOD_COLUMNS = ("method", "rounds", "steps", "tokens", "PFLOP", "a client", "in all", "time")


def _method(plan: MethodPlan) -> list[str]:
    """Bytes as sent / received: by one client in round 1, by all clients in all rounds."""
    sent = plan.traffic
    one = f"{format_size(sent.upload)} / {format_size(sent.download)}" if plan.rounds else "-"
    return [
        plan.name, str(plan.rounds), f"{plan.steps:,}", f"{plan.tokens:,}",
        significant_digits((plan.flops + plan.evaluation_flops) / 1e15, 2),
        one,
        f"{format_size(sent.bytes_up)} / {format_size(sent.bytes_down)}", format_hours(plan.hours),
    ]  # fmt: skip


def _memory(memory: Memory) -> str:
    parts = {
        "weights": memory.weights,
        "adapters": memory.adapters,
        "gradients and optimiser": memory.optimiser,
        "activations": memory.activations,
        "logits": memory.logits,
        "cache of rewriting": memory.cache,
    }
    listed = ", ".join(
        f"{k} {'unknown' if v is None else format_size(v)}" for k, v in parts.items()
    )
    return f"memory: {format_size(memory.peak)} at the peak ({listed})"


def _rewriting(plan: RunPlan) -> str:
    """Nothing where no method distils."""
    rewrites = plan.rewrites
    if not any(each.distils for each in plan.methods):
        return ""
    return (
        f"rewriting, once: {rewrites.requests:,} requests, {rewrites.prompt_tokens:,} tokens, "
        f"about {rewrites.tokens:,} tokens written, {format_hours(rewrites.hours)} "
        f"(an attempt writes at most {rewrites.most_tokens:,}; "
        f"a record has at most {rewrites.attempts})"
    )


def plan_costs(plan: RunPlan) -> dict[str, Any]:
    """The plan with its numbers, and in words for a page."""
    words = [_rewriting(plan), _memory(plan.memory), f"in all: {format_hours(plan.hours)}"]
    return {
        "plan": asdict(plan),
        "words": [*filter(None, words), *plan.assumptions],
        "columns": list(METHOD_COLUMNS),
        "methods": [_method(each) for each in plan.methods],
    }


def format_hours(count: float | None) -> str:
    if count is None:
        return "time unknown"
    if count >= 1:
        return f"{significant_digits(count, 3)} h"
    return f"{count * 60:.2g} min" if count * 60 >= 1 else f"{count * 3600:.2g} s"


def significant_digits(value: float, count: int) -> str:
    """The number with so many digits, or all before the point where these are more."""
    return f"{value:,.0f}" if value >= 10**count - 0.5 else f"{value:.{count}g}"
