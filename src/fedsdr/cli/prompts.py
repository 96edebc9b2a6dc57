"""Rewriting prompts compared, as `fedsdr distill --prompts` prints them."""

import textwrap
from typing import Final

import typer

from fedsdr.core.console import Grid, print_grid
from fedsdr.distillation.prompts import FAULTS, PromptTrial
from fedsdr.workflows.prompts import PromptComparison

COMPARISON_HEADS: Final = (
    "prompt", "accepted", "sound", "unchanged", *(fault.replace("_", " ") for fault in FAULTS),
    "wrong", "words", "tokens", "seconds",
)  # fmt: skip
LEGEND: Final = f"""\
accepted: the gate let a rewrite pass. sound: that rewrite is also none of unchanged, faulty, wrong.
unchanged: it is the raw response. {", ".join(FAULTS)}: of the first attempts, whether or not
the gate checks it. wrong: of accepted rewrites whose right answer is known. words: of an accepted
rewrite."""


def print_comparison(comparison: PromptComparison) -> None:
    """A row a prompt with the best one first, the prompts themselves, and what to write."""
    trials = sorted(comparison.trials, key=lambda trial: trial is not comparison.best)
    typer.echo(
        f"{len(trials)} prompts on the same {comparison.best.records} records of "
        f"{comparison.clients} client(s), with checks and attempts of {comparison.method}; a raw "
        f"response has {comparison.raw_words:.1f} words"
    )
    print_grid(Grid(COMPARISON_HEADS, [_row(trial) for trial in trials]))
    typer.echo(f"{LEGEND}\n")
    for trial in trials:
        typer.echo(f"{trial.name}:\n{textwrap.indent(trial.text.strip(), '    ')}\n")
    others = ", ".join(each.name for each in comparison.indistinct) or "no other"
    typer.echo(
        f"best: {comparison.best.name}, for it has the most sound rewrites, and of equals the "
        f"fewest tokens\nnot shown to be worse (McNemar's exact test, 5 %): {others}\n"
        f"to use it, write into the recipe:\n\n{comparison.toml}"
    )


def _row(trial: PromptTrial) -> list[str]:
    wrong = f"{_percent(trial.wrong, trial.checked)} of {trial.checked}" if trial.checked else "-"
    return [
        trial.name,
        _percent(trial.accepted, trial.records),
        _percent(sum(trial.sound), trial.records),
        _percent(trial.unchanged, trial.records),
        *(_percent(trial.faults[fault], trial.records) for fault in FAULTS),
        wrong,
        f"{trial.words:.1f}",
        f"{trial.tokens:,}",
        f"{trial.seconds:.0f}",
    ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"
