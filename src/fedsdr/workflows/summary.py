"""From finished runs to summary.json: estimates over seeds, and the claims in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedsdr.core import files
from fedsdr.core.layout import METRICS_FILE, REPORT_FILE, RESULT_FILE, SUMMARY_FILE
from fedsdr.core.statistics import metric_intervals
from fedsdr.evaluate.claims import FEDSDR, judge_claims
from fedsdr.evaluate.equal_facts import KEPT, Curve, curve_points
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.method import PAPER
from fedsdr.report.html import write_report
from fedsdr.workflows.privacy_loss import privacy_of_run


class RunTime(NamedTuple):
    """seconds: of this process. resumed: whether another process had begun the work."""

    seconds: float
    resumed: bool


def summarise_runs(
    methods: Sequence[Method],
    seeds: Sequence[int],
    folders: Sequence[Path],
    out: Path,
    time: RunTime,
) -> dict[str, Any]:
    """Gather the results of finished runs, one folder a seed, into summary.json and report.html.

    methods: of one of the runs; those of the others differ in their seed alone.
    """
    recipe, own = methods[-1].recipe, methods[-1].name
    places = {each.name: [each.within(top).folder for top in folders] for each in methods}
    results = {
        name: [files.read_json(f / RESULT_FILE) for f in each] for name, each in places.items()
    }
    # Variants have no part in the paper's claims; curves at equal facts exist in the labs alone.
    claimed = {name: each for name, each in results.items() if name not in recipe.variants}
    curves = curves_of(claimed, places) if recipe.world else {}
    # A recipe of one stream, or of another method, does not stand for FedSDR; a baseline of that
    # name may.
    papers = recipe.federation.targets == "two_stream" and recipe.method == PAPER
    fedsdr = own if papers else FEDSDR
    summary = {
        "kind": "run" if folders == [out] else "compare",
        "name": out.name,
        "own": own,
        "seeds": list(seeds),
        "seconds": round(time.seconds, 1),
        "resumed": time.resumed,
        "methods": {name: metric_intervals(each) for name, each in results.items()},
        "runs": {name: [str(f.relative_to(out)) for f in each] for name, each in places.items()},
        "claims": judge_claims(claimed, fedsdr, curves),
        "privacy": privacy_of_run(methods, folders),
    }
    write_report(out, summary)
    files.write_json(out / SUMMARY_FILE, summary)
    return summary


def is_summarised(out: Path) -> bool:
    """Whether a run has ended in a folder: of what it writes the summary is the last."""
    return (out / SUMMARY_FILE).exists() and (out / REPORT_FILE).exists()


def curves_of(
    results: Mapping[str, Sequence[Mapping[str, float]]], places: Mapping[str, Sequence[Path]]
) -> dict[str, list[Curve]]:
    """Each run's evaluations along training, for the methods that have a global model.

    What the others log is the base model's.
    """
    return {
        name: [curve_points(files.read_json_lines(f / METRICS_FILE)) for f in places[name]]
        for name, runs in results.items()
        if all(KEPT in run for run in runs)
    }
