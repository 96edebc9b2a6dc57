"""`--dry-run`: the plan of a run, printed; nothing is loaded and nothing is written."""

from rich.console import Console

from fedsdr.core.console import Grid, print_grid
from fedsdr.estimate.plan import RunPlan
from fedsdr.estimate.words import (
    METHOD_COLUMNS,
    describe_memory,
    describe_rehearsal,
    describe_rewriting,
    describe_teaching,
    format_hours,
    method_cells,
)


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
    """What rewriting, rehearsal, teachers and each method take, in bytes, memory and hours."""
    lines = (describe_rewriting(plan), describe_rehearsal(plan), describe_teaching(plan))
    for words in filter(None, lines):
        console.print(words, highlight=False)
    print_grid(Grid(METHOD_COLUMNS, list(map(method_cells, plan.methods))), console)
    console.print(describe_memory(plan.memory), highlight=False)
    console.print(
        f"in all: {format_hours(plan.hours)}" + (f" a seed, for {runs} seeds" if runs > 1 else ""),
        highlight=False,
    )
    for note in plan.assumptions:
        console.print(f"- {note}", highlight=False, style="dim")
