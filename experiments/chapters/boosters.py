"""FedSD as a booster of every algorithm: the paper's first table, at lab scale."""

from collections.abc import Callable, Mapping

from experiments import plan
from experiments.chapter import Chapter, Table, format_estimate
from experiments.chapters.shared import at_equal_facts
from experiments.plan import BOOSTED, Cell
from experiments.results import Results, win_rate
from fedsdr.core.statistics import Estimate, t_interval
from fedsdr.evaluate.verdicts import Claim, Condition
from fedsdr.report.labels import method_label as label

Measure = Callable[[Cell, Cell], Estimate | None]
Pairs = Mapping[str, tuple[Cell, Cell]]  # algorithm -> its cells on rewrites and on raw responses
METRICS = ("general", "client_facts", "hallucination", "response_loss")


def boosters_chapter(results: Results) -> Chapter:
    cells = plan.boosters_cells()
    pairs = {name: (cells[f"fedsd+{name}"], cells[name]) for name in BOOSTED}
    ready = {name: pair for name, pair in pairs.items() if results.done(*pair)}

    return Chapter(
        "FedSD boosts every algorithm",
        "Seven algorithms at their default options, each on raw responses and on rewrites. The win "
        "rate is exact: of the held-out questions that exactly one of the two models answers "
        "rightly, the share that the one on rewrites does. Response loss is on raw responses.",
        [
            *boosters_claims(results, ready),
            Claim(
                "Every model on rewrites wins against the one on raw responses (paper: 56 to 60 %)",
                _tests(
                    ready, "win rate above 50 %", lambda a, b: _minus(_wins(results, a, b), 50.0)
                ),
                each=True,
            ),
        ],
        [("Raw -> rewritten (difference)", _table(results, ready))],
    )


def boosters_claims(results: Results, pairs: Pairs) -> list[Claim]:
    """What rewriting does to each algorithm."""
    return [
        Claim(
            "On rewrites every algorithm keeps more general knowledge (paper: MMLU)",
            _tests(pairs, "general", lambda a, b: results.difference(a, b, "general")),
            each=True,
        ),
        Claim(
            "On rewrites every algorithm keeps more general knowledge at equal client facts",
            _tests(pairs, "general at equal facts", lambda a, b: at_equal_facts(results, a, b)),
            each=True,
        ),
        Claim(
            "On rewrites every algorithm learns more client facts",
            _tests(pairs, "client facts", lambda a, b: results.difference(a, b, "client_facts")),
            each=True,
        ),
    ]


def _tests(pairs: Pairs, what: str, measure: Measure) -> list[Condition]:
    return [Condition(f"{label(n).short}: {what}", measure(*pair)) for n, pair in pairs.items()]


def _table(results: Results, ready: Pairs) -> Table:
    rows = []
    for name, (rewritten, raw) in ready.items():
        equal = results.at_equal_facts(rewritten, raw)
        rows.append(
            [
                label(name).short,
                *(_arrow(results, raw, rewritten, metric) for metric in METRICS),
                format_estimate(_wins(results, rewritten, raw)),
                f"{format_estimate(equal[0], sign=True)} (at {equal[1]:.0f})" if equal else "",
                str(len(results.done(rewritten, raw))),
            ]
        )
    columns = ["", "general", "client facts", "hallucination", "response loss", "win rate, %"]
    return Table([*columns, "general at equal facts", "seeds"], rows)


def _arrow(results: Results, raw: Cell, rewritten: Cell, metric: str) -> str:
    first, second = results.estimate(raw, metric), results.estimate(rewritten, metric)
    if first is None or second is None:
        return ""
    digits = 2 if metric == "response_loss" else 1
    moved = format_estimate(results.difference(rewritten, raw, metric), digits, sign=True)
    return f"{first['mean']:.{digits}f} -> {second['mean']:.{digits}f} ({moved})"


def _wins(results: Results, a: Cell, b: Cell) -> Estimate:
    seeds = results.done(a, b)
    return t_interval([win_rate(results.answers(a, s), results.answers(b, s)) for s in seeds])


def _minus(found: Estimate, number: float) -> Estimate:
    def less(x: float | None) -> float | None:
        return None if x is None else x - number

    low, high = less(found["low"]), less(found["high"])
    return {"n": found["n"], "mean": found["mean"] - number, "low": low, "high": high}
