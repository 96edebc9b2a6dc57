"""What the folder of a run or comparison without a summary shows so far, and what is to come.

The folder of a comparison has one folder a seed from the start, of those to come as well.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.core.files import read_json, read_json_lines
from fedsdr.core.layout import METRICS_FILE, RECIPE_FILE, RESULT_FILE
from fedsdr.core.statistics import metric_intervals
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.methods import method_folders, own_name
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report import labels, text

MethodPlaces = Mapping[str, Path]  # method -> its folder, in the order of the run


def interim_summary(folder: Path) -> dict[str, Any]:
    """What summary.json will hold, as far as it is known: the scores of finished methods, and where
    all that have begun lie. `pending`: what is still to come, in words.

    Raises `UserError` where the recipe cannot be read.
    """
    recipe = load_recipe(folder / RECIPE_FILE)
    seeds = {
        int(path.name.removeprefix("seed-")): path
        for path in folder.glob("seed-*")
        if path.name.removeprefix("seed-").isdecimal()
    } or {recipe.seed: folder}
    runs = {seed: method_folders(recipe, seeds[seed]) for seed in sorted(seeds)}
    names = method_folders(recipe, folder)
    begun = {
        name: [run[name] for run in runs.values() if (run[name] / METRICS_FILE).exists()]
        for name in names
    }
    results = {
        name: [read_json(place / RESULT_FILE) for place in places if _is_done(place)]
        for name, places in begun.items()
    }
    return {
        "kind": "run" if seeds == {recipe.seed: folder} else "compare",
        "name": folder.absolute().name,
        "own": own_name(recipe),
        "seeds": list(runs),
        "methods": {name: metric_intervals(found) for name, found in results.items() if found},
        "runs": {
            name: [str(place.relative_to(folder)) for place in places]
            for name, places in begun.items()
            if places
        },
        "pending": _pending_words(recipe, runs),
    }


def _is_done(place: Path) -> bool:
    return (place / RESULT_FILE).exists()


def _pending_words(recipe: Recipe, runs: Mapping[int, MethodPlaces]) -> str:
    """ "FedSDR: 3 of 6 rounds are done; then local", of the first run that is not finished; then
    the seeds to come."""
    waiting = {
        seed: {name: place for name, place in places.items() if not _is_done(place)}
        for seed, places in runs.items()
    }
    (current, methods), *later = [(seed, left) for seed, left in waiting.items() if left] or [
        (recipe.seed, {})
    ]
    if not methods:
        return "the summary"
    first, *rest = methods
    started = _rounds_words(methods[first])
    words = [
        f"{f'seed {current}: ' if len(runs) > 1 else ''}{_short(first)}{started}",
        text.join_words([_short(name) for name in rest]),
        text.join_words([f"seed {seed}" for seed, _ in later]),
    ]
    return "; then ".join(filter(None, words))


def _rounds_words(place: Path) -> str:
    """ ": 3 of 6 rounds are done", of a method that has been evaluated before its first round; ""
    of any other one."""
    rows = read_json_lines(place / METRICS_FILE)
    if not rows:
        return ""
    rounds = load_recipe(place / RECIPE_FILE).federation.rounds
    return f": {rows[-1]['round']} of {rounds} rounds are done" if rounds else ""


def _short(name: str) -> str:
    return labels.method_label(name).short
