"""FedSDR's global and personal models against everybody else's."""

from statistics import fmean

from experiments import plan
from experiments.chapter import Chapter, Table, format_estimate
from experiments.chapters.shared import GLOBAL, PERSONAL, front_figure, overview_table
from experiments.plan import Cells
from experiments.results import Results
from fedsdr.core.statistics import t_interval
from fedsdr.evaluate.verdicts import Claim, Condition
from fedsdr.report.labels import method_label as label


def rivals_chapter(results: Results) -> Chapter:
    cells = plan.rivals_cells()
    return Chapter(
        "FedSDR",
        "FedSDR's global model W0 + R and its clients' own W0 + R + S against the other methods, "
        "at equal rounds and, since whoever learns nothing forgets nothing, at equal client facts.",
        rivals_claims(results, cells),
        [
            ("All methods", overview_table(results, cells, GLOBAL | PERSONAL)),
            ("What five clients send and receive in a round", _traffic(results, cells)),
        ],
        [front_figure(results, "rivals", cells)],
    )


def rivals_claims(results: Results, cells: Cells) -> list[Claim]:
    """FedSDR against the others; cells: FedAvg, FedSD, FedSDR and local training among them."""
    own = [n for n, cell in cells.items() if results.has(cell, "personal_client_facts")]

    def ahead(other: str, metric: str) -> Condition:
        found = results.difference(cells["fedsdr"], cells[other], metric)
        return Condition(f"{metric}, FedSDR - {label(other).short}", found)

    def ahead_at_equal_facts(other: str) -> Condition:
        found = results.at_equal_facts(cells["fedsdr"], cells[other])
        at = f" (at {found[1]:.0f})" if found else ""
        what = f"general at equal facts{at}, FedSDR - {label(other).short}"
        return Condition(what, found[0] if found else None)

    alone = results.difference(cells["local"], cells["fedavg"], "personal_client_facts")
    return [
        Claim(
            "FedSDR's global model keeps more general knowledge than FedAvg's and FedSD's "
            "(paper: MMLU 47.1 against 40.7 and 43.7)",
            [ahead("fedavg", "general"), ahead("fedsd", "general")],
        ),
        Claim(
            "FedSDR's global model keeps more general knowledge at equal client facts",
            [ahead_at_equal_facts("fedavg"), ahead_at_equal_facts("fedsd")],
        ),
        Claim(
            "FedSDR's global model learns more client facts than FedSD's",
            [ahead("fedsd", "client_facts")],
        ),
        Claim(
            "FedSDR's personal models know more client facts than those of any other method",
            [ahead(other, "personal_client_facts") for other in own if other != "fedsdr"],
            each=True,
        ),
        Claim(
            "The average of the clients' adapters does worse on their data than what each "
            "learns alone",
            [Condition("personal_client_facts, local - FedAvg", alone)],
        ),
    ]


def _traffic(results: Results, cells: Cells) -> Table:
    """MB of tensors, means over rounds."""
    rows = []
    for name, cell in cells.items():
        runs = {
            way: [results.training(cell, seed, f"bytes_{way}") for seed in results.done(cell)]
            for way in ("up", "down")
        }
        if all(its and all(its) for its in runs.values()):
            means = (t_interval([fmean(run) / 1e6 for run in its]) for its in runs.values())
            rows.append([label(name).short, *(format_estimate(each, 2) for each in means)])
    return Table(["method", "MB up", "MB down"], rows)
