"""The chapters on the English lab: the paper's claims again, and what verification adds."""

from typing import Final

from experiments.chapter import Chapter
from experiments.chapters.boosters import boosters_claims
from experiments.chapters.paradox import paradox_claims
from experiments.chapters.rivals import rivals_claims
from experiments.chapters.shared import front_figure, overview_table
from experiments.plan import Cells
from experiments.real.plan import SWAPPED
from experiments.real.results import RealResults
from experiments.real.shared import (
    accepted_table,
    ahead_of,
    bars_figure,
    differences_table,
    rewriting_claims,
    rewriting_table,
)
from fedsdr.evaluate.verdicts import Claim

GLOBAL: Final = {
    "client_facts": "client facts",
    "changed_facts": "changed facts",
    "general": "general",
    "general_kept": "general kept",
    "hallucination": "hallucination",
    "inventions": "inventions",
    "refusals": "refusals",
    "length": "words",
    "response_loss": "response loss",
}
PERSONAL: Final = {
    "personal_client_facts": "client facts",
    "personal_changed_facts": "changed facts",
    "personal_general_kept": "general kept",
    "personal_hallucination": "hallucination",
    "personal_inventions": "inventions",
    "personal_house_style": "house style",
    "personal_length": "words",
}
SHOWN: Final = ("client_facts", "general_kept", "hallucination", "inventions", "length")
BOOSTED: Final = {
    "fedavg": ("fedsd", "fedavg"),
    "fedavgm": ("fedsd+fedavgm", "fedavgm"),
    "fedadam": ("fedsd+fedadam", "fedadam"),
}


def english_chapters(results: RealResults, cells: Cells) -> list[Chapter]:
    """The claims that are judged on the synthetic lab, too, then those of our own."""
    pairs = {
        name: (cells[rewritten], cells[raw])
        for name, (rewritten, raw) in BOOSTED.items()
        if results.done(cells[rewritten], cells[raw])
    }
    claims = [
        *boosters_claims(results, pairs),
        *rewriting_claims(results, cells),
        *rivals_claims(results, cells),
        *paradox_claims(results, cells),
    ]
    own = {name: cells[name] for name in ("local", "fedsdr", SWAPPED)}
    shared = _with_global_model(cells)
    paper = Chapter(
        "The English lab",
        "Five organisations with eight facts each, a quarter of them changed, and conflicting "
        "house styles (english.md); five rounds of six steps of eight records. Each seed draws a "
        "world of its own. Models are judged before the first and after the last round, so that "
        '"at equal client facts" reads general knowledge on the straight line between these two. '
        "A client without a model of its own uses the global one.",
        claims,
        [
            ("Global models", overview_table(results, shared, GLOBAL)),
            ("Differences to FedAvg", differences_table(results, shared, "fedavg", GLOBAL)),
            ("Clients' own models", overview_table(results, own, PERSONAL)),
            ("Rewrites", accepted_table(results, cells)),
            ("Texts and gradients", rewriting_table(results, cells)),
        ],
        [
            front_figure(results, "english", cells),
            bars_figure(
                results,
                "english",
                "Final global models; bars end at the mean over seeds, lines are 95 % intervals.",
                cells,
                {metric: GLOBAL[metric] for metric in SHOWN},
            ),
        ],
    )
    return [paper, _verification(results, cells)]


def _verification(results: RealResults, cells: Cells) -> Chapter:
    both = ("client_facts", "general_kept")
    others = ("fedavg", "fedsd", "fedsdr")
    return Chapter(
        "Verified rewrites",
        "Verified rewrites state the gold answer, within four attempts. "
        f'"{SWAPPED}" exchanges what the two streams of FedSDR learn from: R, which is aggregated, '
        "learns from verified rewrites, and S from the raw responses. These claims are not the "
        "paper's.",
        [
            Claim(
                "Verified rewrites teach more client facts than unverified ones",
                [ahead_of(results, cells, "fedsd_verified", "fedsd", "client_facts")],
            ),
            Claim(
                "FedSD on verified rewrites is above FedAvg in client facts and in general "
                "knowledge kept",
                [ahead_of(results, cells, "fedsd_verified", "fedavg", m) for m in both],
            ),
            Claim(
                f"{SWAPPED}: the global model is above FedAvg's, FedSD's and FedSDR's in client "
                "facts and in general knowledge kept",
                [ahead_of(results, cells, SWAPPED, other, m) for other in others for m in both],
            ),
            Claim(
                f"{SWAPPED}: clients' own models know more client facts than with FedSDR and local "
                "training",
                [
                    ahead_of(results, cells, SWAPPED, other, "personal_client_facts")
                    for other in ("fedsdr", "local")
                ],
            ),
        ],
        [
            (
                "Differences to FedSDR",
                differences_table(results, _with_global_model(cells), "fedsdr", GLOBAL),
            )
        ],
    )


def _with_global_model(cells: Cells) -> Cells:
    return {name: cell for name, cell in cells.items() if name != "local"}
