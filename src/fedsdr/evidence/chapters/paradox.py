"""The Rewrite Paradox: how false rewrites come about, and how averaging broadcasts them."""

from collections.abc import Mapping
from typing import Any

from fedsdr.evaluate.intervals import estimate
from fedsdr.evidence import plan
from fedsdr.evidence.chapter import Chapter, Claim, Condition, Table, shown
from fedsdr.evidence.chapters.shared import GLOBAL, along_training, overview, sweep
from fedsdr.evidence.plan import MAIN, STUBBORNNESS, Cells
from fedsdr.evidence.results import Results

METHODS = (*MAIN, "fedsd_verified")


def paradox(results: Results) -> Chapter:
    cells = plan.paradox()
    half = {method: cells[f"{method} 0.5"] for method in METHODS}

    def differs(a: str, b: str, metric: str, positive: bool = True) -> Condition:
        found = results.difference(half[a], half[b], metric)
        return Condition(f"{metric}, {a} - {b}", found, positive)

    return Chapter(
        "The Rewrite Paradox",
        "In the lab a rewrite is false for a known reason: the base model's memory against the "
        "reference, which it follows with probability `lab.stubbornness`. Each level has a base "
        "model of its own; the claims are judged at 0.5.",
        [
            Claim(
                "Averaging broadcasts false rewrites: FedSD hallucinates more than FedAvg",
                [differs("fedsd", "fedavg", "hallucination")],
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
        [("Rewrites", _rewrites(results, cells)), ("All cells", overview(results, cells, GLOBAL))],
        [
            sweep(
                results, "stubbornness", "stubbornness", STUBBORNNESS,
                {m: [cells[f"{m} {level}"] for level in STUBBORNNESS] for m in METHODS},
            ),
            along_training(results, "paradox-rounds", half, ("hallucination", "length")),
        ],
    )  # fmt: skip


def _rewrites(results: Results, cells: Cells) -> Table:
    """How many rewrites are false, and how long they are, at each level."""
    rows = []
    for level in STUBBORNNESS:
        cell = cells[f"fedsd {level}"]
        found = [_summary(results.distillation(cell, seed)) for seed in results.done(cell)]
        if found:
            numbers = (shown(estimate([each[key] for each in found])) for key in found[0])
            rows.append([f"{level:g}", *numbers])
    return Table(["stubbornness", "false rewrites, %", "words, raw", "words, rewritten"], rows)


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
