"""The chapter on files of five domains."""

from typing import Final

from experiments.chapter import Chapter
from experiments.chapters.shared import overview_table
from experiments.plan import Cells
from experiments.real.measure import ANSWER_TOKENS
from experiments.real.results import RealResults
from experiments.real.shared import (
    accepted_table,
    ahead_of,
    bars_figure,
    differences_table,
    rewriting_claims,
    rewriting_table,
)
from fedsdr.evaluate.verdicts import Claim, Condition
from fedsdr.report.labels import method_label as label

CLIENTS: Final = ("general", "code", "finance", "medicine", "math")
KEPT: Final = {"arc_easy": "ARC-Easy", "piqa": "PIQA"}
LOSSES: Final = {f"loss/{client}": client for client in CLIENTS}
OWN_LOSSES: Final = {f"personal_loss/{client}": client for client in CLIENTS}
ANSWERS: Final = {
    **KEPT,
    "accuracy/finance": "labels, finance",
    "accuracy/math": "numbers, math",
    "refusals": "refusals",
    **{f"words/{client}": f"words, {client}" for client in CLIENTS},
}


def domains_chapters(results: RealResults, cells: Cells) -> list[Chapter]:
    """Held-out loss, answers and benchmarks."""
    methods = ("fedavg", "fedsd", "fedsdr", "fedsd_verified")
    trained = {name: cells[name] for name in methods}
    own = {name: cells[name] for name in ("fedavg", "fedsdr")}
    chapter = Chapter(
        "Five domains",
        "Files of five domains, 24 training and 16 held-out records a client, drawn by the seed "
        "(data.md has their origin); four rounds of five steps of four records. Held-out loss is "
        "in nats a token of the raw response. Answers to the held-out questions are greedy and cut "
        f"at {ANSWER_TOKENS} tokens: finance asks for one of three labels, math for a final "
        "number. ARC-Easy and PIQA are the first 100 questions each, likelihood of the choice per "
        "character. What this does not measure: whether answers to general, code and medicine are "
        "right, and more than 16 questions a client and seed.",
        [*rewriting_claims(results, cells), *_claims(results, cells)],
        [
            ("Answers and benchmarks", overview_table(results, cells, ANSWERS)),
            ("Differences to FedAvg", differences_table(results, cells, "fedavg", ANSWERS)),
            ("Held-out loss of global models", overview_table(results, cells, LOSSES, 3)),
            ("Held-out loss of clients' own models", overview_table(results, own, OWN_LOSSES, 3)),
            ("Rewrites", accepted_table(results, trained)),
            ("Texts and gradients", rewriting_table(results, cells)),
        ],
        [
            bars_figure(
                results,
                "domains",
                "Global models' held-out loss on each client's raw responses, nats a token; lines "
                "are 95 % intervals.",
                cells,
                LOSSES,
            )
        ],
    )
    return [chapter]


def _claims(results: RealResults, cells: Cells) -> list[Claim]:
    def below(a: str, b: str, metric: str) -> Condition:
        found = results.difference(cells[a], cells[b], metric)
        return Condition(f"{metric}, {label(a).short} - {label(b).short}", found, positive=False)

    return [
        Claim(
            "FedSD's global model keeps more of ARC-Easy and PIQA than FedAvg's (paper: MMLU)",
            [ahead_of(results, cells, "fedsd", "fedavg", task) for task in KEPT],
        ),
        Claim(
            "FedSDR's global model keeps more of ARC-Easy and PIQA than FedAvg's and FedSD's",
            [
                ahead_of(results, cells, "fedsdr", other, task)
                for other in ("fedavg", "fedsd")
                for task in KEPT
            ],
        ),
        Claim(
            "FedSDR's global model fits held-out raw responses better than FedSD's",
            [below("fedsdr", "fedsd", "loss")],
        ),
        Claim(
            "FedSDR's personal models fit their clients' held-out responses better than FedAvg's "
            "global model",
            [below("fedsdr", "fedavg", "personal_loss")],
        ),
        Claim(
            "FedSD's global model answers at greater length than FedAvg's",
            [ahead_of(results, cells, "fedsd", "fedavg", "words")],
        ),
    ]
