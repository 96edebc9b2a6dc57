"""The Rewrite Paradox: how false rewrites come about, and how averaging broadcasts them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, Final

from experiments import plan
from experiments.chapter import Chapter, Table, format_estimate
from experiments.chapters.shared import (
    GLOBAL,
    overview_table,
    raw_texts,
    rewritten_texts,
    sweep_figure,
    training_figure,
)
from experiments.plan import MAIN, STUBBORNNESS, Cell, Cells
from experiments.results import Results
from fedsdr.core.statistics import t_interval
from fedsdr.diagnosis.text import text_stats
from fedsdr.evaluate.verdicts import Claim, Condition
from fedsdr.report.labels import method_label as label

METHODS: Final = (*MAIN, "fedsd_verified")
TURNS: Final = (("fedsd", "fedavg"), ("fedsd", "fedsdr"), ("fedsdr", "fedavg"))


def paradox_chapter(results: Results) -> Chapter:
    cells = plan.paradox_cells()
    half = {method: cells[f"{method} 0.5"] for method in METHODS}
    return Chapter(
        "The Rewrite Paradox",
        "In the lab a rewrite is false for a known reason: the base model's memory against the "
        "reference, which it follows with probability `lab.stubbornness`. Each level has a base "
        "model of its own; the claims are judged at 0.5.",
        [
            *paradox_claims(results, half),
            Claim(
                "Without false rewrites (stubbornness 0) FedSD learns more facts than FedAvg",
                [
                    Condition(
                        "client facts, fedsd - fedavg",
                        results.difference(cells["fedsd 0.0"], cells["fedavg 0.0"], "client_facts"),
                    )
                ],
            ),
        ],
        [
            ("Rewrites", _rewrites(results, cells)),
            ("Where the order of two methods turns", _crossings(results, cells)),
            ("All cells", overview_table(results, cells, GLOBAL)),
        ],
        [
            sweep_figure(
                results, "stubbornness", "stubbornness", STUBBORNNESS,
                {m: [cells[f"{m} {level}"] for level in STUBBORNNESS] for m in METHODS},
            ),
            training_figure(results, "paradox-rounds", half, ("hallucination", "length")),
        ],
    )  # fmt: skip


def paradox_claims(results: Results, cells: Cells) -> list[Claim]:
    """What rewrites do to answers; cells: those of `METHODS`."""

    def differs(a: str, b: str, metric: str, positive: bool = True) -> Condition:
        found = results.difference(cells[a], cells[b], metric)
        return Condition(f"{metric}, {a} - {b}", found, positive)

    return [
        Claim(
            "FedSD's global model hallucinates more than FedAvg's",
            [differs("fedsd", "fedavg", "hallucination")],
        ),
        Claim(
            "False rewrites are why: on verified ones it hallucinates less",
            [differs("fedsd_verified", "fedsd", "hallucination", positive=False)],
        ),
        Claim(
            "FedSD's global model answers at greater length than FedAvg's",
            [differs("fedsd", "fedavg", "length")],
        ),
        Claim(
            "FedSDR's global model hallucinates less and answers shorter than FedSD's",
            [
                differs("fedsdr", "fedsd", "hallucination", positive=False),
                differs("fedsdr", "fedsd", "length", positive=False),
            ],
        ),
    ]


def _crossings(results: Results, cells: Cells) -> Table:
    """The stubbornness at which two methods know equally many client facts, or keep as much
    general knowledge, between levels by a straight line, seed by seed; seeds whose order never
    turns are counted, and left out."""
    rows = []
    for metric in ("client_facts", "general"):
        for a, b in TURNS:
            seeds = results.done(*(cells[f"{m} {level}"] for m in (a, b) for level in STUBBORNNESS))
            found = [_crossing(results, cells, a, b, metric, seed) for seed in seeds]
            turned = [x for x in found if x is not None]
            where = format_estimate(t_interval(turned), 2) if turned else ""
            names = f"{label(a).short} and {label(b).short}"
            rows.append([GLOBAL[metric], names, where, f"{len(turned)} of {len(seeds)}"])
    return Table(["", "methods", "at stubbornness", "seeds that turn"], rows)


def _crossing(
    results: Results, cells: Cells, a: str, b: str, metric: str, seed: int
) -> float | None:
    ahead = [
        results.metrics(cells[f"{a} {level}"], seed)[metric]
        - results.metrics(cells[f"{b} {level}"], seed)[metric]
        for level in STUBBORNNESS
    ]
    return sign_change(STUBBORNNESS, ahead)


def _rewrites(results: Results, cells: Cells) -> Table:
    """How many rewrites are false, and how long they are, at each level."""
    rows = []
    for level in STUBBORNNESS:
        cell = cells[f"fedsd {level}"]
        seeds = results.done(cell)
        found = [
            _summary(results.distillation(cell, seed)) | _style(results, cell, seed)
            for seed in seeds
        ]
        if found:
            numbers = (
                format_estimate(t_interval([each[key] for each in found])) for key in found[0]
            )
            rows.append([f"{level:g}", *numbers])
    kinds = ("words", "with a filler, %", "repetitive, %")
    sides = [f"{kind}, {side}" for kind in kinds for side in ("raw", "rewritten")]
    return Table(["stubbornness", "false rewrites, %", *sides], rows)


def _style(results: Results, cell: Cell, seed: int) -> dict[str, float]:
    """Responses with a filler and repetitive ones, in percent, by means over clients."""
    sides = (raw_texts(cell, seed), rewritten_texts(results, cell, seed))
    before, after = ([text_stats(texts) for texts in side.values()] for side in sides)
    return {
        "filler before": 100 * fmean(stats.filler for stats in before),
        "filler after": 100 * fmean(stats.filler for stats in after),
        "repetitive before": 100 * fmean(stats.repetitive for stats in before),
        "repetitive after": 100 * fmean(stats.repetitive for stats in after),
    }


def _summary(distillation: Mapping[str, Any]) -> dict[str, float]:
    clients = distillation["clients"].values()
    records = sum(client["records"] for client in clients)
    checked = sum(client["checked"] for client in clients)
    wrong = sum((client["wrong"] or 0.0) * client["checked"] for client in clients)
    return {
        "wrong": 100 * wrong / max(checked, 1),
        "raw": sum(client["raw_words"] * client["records"] for client in clients) / records,
        "words": sum(client["rewrite_words"] * client["records"] for client in clients) / records,
    }


def sign_change(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """The first x, of rising ones, at which the line through the points changes its sign; None if
    it never does. Points at zero have no sign: what counts is the change around them."""
    signed = [(x, y) for x, y in zip(xs, ys, strict=True) if y]
    for (a, before), (b, after) in pairwise(signed):
        if (before > 0) != (after > 0):
            return a + (b - a) * before / (before - after)
    return None
