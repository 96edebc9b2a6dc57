"""What a run has disclosed of a client under differential privacy: of one method, and as a whole.

Each method's releases are of the same data, and so are those of every seed that has no data of its
own. Whoever sees the whole run sees all of them, and what counts is their composition.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedsdr.algorithms.accounting import composed_epsilon, single_epsilon
from fedsdr.core import files
from fedsdr.core.layout import METRICS_FILE
from fedsdr.core.notices import plural_form
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.recipe import Recipe

ReleaseRows = Sequence[Mapping[str, Any]]
Released = Counter[float]  # noise multiplier -> how many releases had it

UNJUDGED: Final = (
    'no held-out scores: under privacy.mode = "{}" the clients of a deployment send none'
)
KNOWN: Final = " The seed of the noise is in the recipe, and whoever has that can take it off."
UNCOVERED: Final = (
    "It covers what clients upload, and not the held-out scores and personal models of this "
    "simulation, which are made of the same records without noise."
)


def privacy_spent(recipe: Recipe, rows: ReleaseRows) -> dict[str, float]:
    """The epsilon of one method alone, for the client that took part most often; nothing where no
    noise was added."""
    mode, noise = recipe.privacy.mode, recipe.privacy.noise_multiplier
    if mode == "none" or noise == 0:
        return {}
    most = max(_asked(rows).values(), default=0)
    return {"epsilon": single_epsilon(noise, most, recipe.privacy.delta, local=mode == "local")}


def planned_epsilon(methods: Sequence[Method]) -> float:
    """What a whole run, all its methods, can cost a client: inf without noise."""
    recipes = [method.recipe for method in methods]
    released: Released = Counter()
    for each in recipes:
        released[_noise(each)] += each.federation.rounds
    return composed_epsilon(released, _delta(recipes), _is_local(recipes))


def privacy_of_run(methods: Sequence[Method], folders: Sequence[Path]) -> dict[str, Any] | None:
    """What finished runs, one folder a seed, disclosed of a client; None without privacy.

    epsilon: of all methods, and of all seeds that share their data, at `delta`, the smallest of the
    methods'; None where a method added no noise and nothing is promised. releases: of the client
    that gave most away. words: the same for a reader.
    """
    recipe = methods[-1].recipe
    private = [each.recipe for each in methods if each.recipe.privacy.mode != "none"]
    if not private:
        return None
    worst = max(_clients(recipe, [_by_client(methods, top) for top in folders]), key=_cost)
    delta = _delta(private)
    spent = composed_epsilon(worst, delta, _is_local(private))
    releases = sum(worst.values())
    about = plural_form(len(methods), "method") + _seeds(recipe, len(folders))
    if math.isinf(spent):
        words = (
            "Privacy of the run as a whole: no bound, since a method sent updates without noise."
        )
    else:
        words = (
            f"Privacy of the run as a whole: epsilon {spent:.4g} at delta {delta:g} for each "
            f"client's data, over {releases} releases of the client that gave most ({about}). "
            "The epsilon of a method is of that method alone."
            + (KNOWN if any(each.privacy.noise_seed is not None for each in private) else "")
        )
    judged = any("eval" in row for top in folders for row in _all_rows(methods, top))
    words += " " + (UNCOVERED if judged else UNJUDGED.format(private[-1].privacy.mode) + ".")
    bound = None if math.isinf(spent) else spent
    return {"epsilon": bound, "delta": delta, "releases": releases, "words": words}


def _asked(rows: ReleaseRows) -> Counter[str]:
    """How often each client was asked: what did not count was released all the same."""
    return Counter(
        client for row in rows for client in (*row.get("clients", ()), *row.get("absent", ()))
    )


def _by_client(methods: Sequence[Method], top: Path) -> dict[str, Released]:
    """What each client of one run released, all methods together."""
    found: dict[str, Released] = {}
    pooled: Released = Counter()
    for method in methods:
        each, rows = method.recipe, _logged_rows(method, top)
        sent = any(row.get("train", {}).get("bytes_up") for row in rows)
        if each.privacy.mode == "none" and not sent:  # of local training, say
            continue
        asked = _asked(rows)
        if each.federation.pooled:  # by one client that holds everybody's records
            pooled[_noise(each)] += sum(asked.values())
            continue
        for client, times in asked.items():
            found.setdefault(client, Counter())[_noise(each)] += times
    return {client: own + pooled for client, own in found.items()} or {"all": pooled}


def _clients(recipe: Recipe, seeds: Sequence[Mapping[str, Released]]) -> Iterable[Released]:
    """What each client released in all seeds that share its data."""
    if not _same_data(recipe):
        return [released for each in seeds for released in each.values()]
    names = dict.fromkeys(name for each in seeds for name in each)
    if recipe.world or all(source.client for source in recipe.data.sources):
        return [_sum(each.get(name, Counter()) for each in seeds) for name in names]
    # Records are split anew for each seed: one may be at the client that gave most every time.
    return [_sum(max(each.values(), key=_cost) for each in seeds)]


def _same_data(recipe: Recipe) -> bool:
    """Whether all seeds have the same records; a lab draws a world for each by default."""
    return recipe.world is None or recipe.world.seed is not None


def _seeds(recipe: Recipe, seeds: int) -> str:
    if seeds == 1:
        return ""
    return f", {seeds} seeds " + (
        "on the same data" if _same_data(recipe) else "with data of their own, of which it is one"
    )


def _sum(parts: Iterable[Released]) -> Released:
    total: Released = Counter()
    for part in parts:
        total += part
    return total


def _cost(released: Released) -> float:
    """What releases cost, up to a factor: the squares of sensitivity over noise add up."""
    return sum(times / noise**2 if noise else math.inf for noise, times in released.items())


def _noise(recipe: Recipe) -> float:
    return 0.0 if recipe.privacy.mode == "none" else recipe.privacy.noise_multiplier


def _delta(recipes: Iterable[Recipe]) -> float:
    return min(each.privacy.delta for each in recipes)


def _is_local(recipes: Iterable[Recipe]) -> bool:
    """Whether any two data sets must look alike, which is more than a client's absence."""
    return any(each.privacy.mode == "local" for each in recipes)


def _logged_rows(method: Method, top: Path) -> list[Any]:
    return files.read_json_lines(method.within(top).folder / METRICS_FILE)


def _all_rows(methods: Sequence[Method], top: Path) -> list[Mapping[str, Any]]:
    return [row for method in methods for row in _logged_rows(method, top)]
