"""Diagnosis of a recipe before it is run: who holds what, and how heterogeneous it is.

Statistics and positions only: no text of a client is in what this returns or writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.core.statistics import Interval
from fedsdr.data.records import ClientData, Record
from fedsdr.data.sources import read_source
from fedsdr.data.template import ChatFormat
from fedsdr.diagnosis.data_quality import QUANTILES, measure_quality, prompt_key
from fedsdr.diagnosis.divergence import fewest_words
from fedsdr.diagnosis.heterogeneity import (
    Change,
    ClientDivergence,
    Gradients,
    GroupedGradients,
    divergence_change,
    gradient_change,
    measure_divergence,
)
from fedsdr.diagnosis.maps import FEWEST_POINTS, response_map
from fedsdr.diagnosis.pairwise import Pairwise
from fedsdr.diagnosis.reading import interpret_diagnosis
from fedsdr.diagnosis.text import split_words, text_stats
from fedsdr.federation.loaded import LoadedRun
from fedsdr.model.base import context_of, load_chat
from fedsdr.model.install import first_adapter
from fedsdr.recipe.sections.data import Source
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.distill import open_rewriter
from fedsdr.workflows.prepare import PreparedRun, plan_folder, rewrite_cache

SMALL: Final = 10**9  # bytes of weights that are loaded without being asked for
SAMPLE: Final = 32  # records of each client whose gradients are taken
MAPPED: Final = 60  # responses of each client on the map, and fewer of many clients
MAP_SIZE: Final = 600
SampledRewrites = dict[
    str, list[tuple[Record, str]]
]  # client -> its sampled records and their rewrites


@dataclass(frozen=True)
class DiagnosisOptions:
    """gradients: records of each client, or None for `SAMPLE` where the weights are small.
    distilled: rewrite that many records of each client. rewrites: a file that holds rewrites of
    the same prompts, instead. model: whether weights may be loaded."""

    gradients: int | None = None
    distilled: int | None = None
    rewrites: Path | None = None
    model: bool = True


def run_diagnosis(
    run: PreparedRun, options: DiagnosisOptions, reporter: Reporter
) -> dict[str, Any]:
    """Everything, ready for JSON; options that `check_options` has passed."""
    recipe = run.recipe
    _check_compared(options, run.clients)
    loaded = run.load(reporter) if _loads(recipe, options) else None
    chat, context = (loaded.base.chat, loaded.base.context) if loaded else _chat(recipe)
    limit = min(recipe.model.max_length, context)
    held = measure_quality(run.clients, chat, limit)
    usable = {
        c.name: [r for r in c.train if len(chat.prompt_ids(r.prompt, r.tools)) < limit]
        for c in run.clients
    }
    found: dict[str, Any] = {
        "model": recipe.model.path,
        "seed": recipe.seed,
        "max_length": limit,
        "quantiles": list(QUANTILES),
        "clients": [asdict(each) for each in held],
        "skipped": [
            {"client": s.client, "file": s.file, "skipped": len(s.skipped), "rows": s.rows}
            for s in run.sources
        ],
        "passes": _passes(recipe, run.clients),
        "weights_loaded": loaded is not None,
    }
    if len(run.clients) > 1:
        found |= _heterogeneity(recipe, options, loaded, usable, reporter)
    return found | {"reading": interpret_diagnosis(found)}


def check_diagnosis(options: DiagnosisOptions) -> None:
    """Raise `UserError` for what is wrong, before any work."""
    if options.gradients is not None and options.gradients < 1:
        raise UserError(
            f"--gradients {options.gradients}: give at least 1 record, or --no-model for none"
        )
    if options.distilled is not None and options.distilled < 1:
        raise UserError(f"--distilled {options.distilled}: give at least 1 record")
    if not options.model and (options.distilled or options.gradients):
        raise UserError("--no-model loads no weights: remove it, or --gradients and --distilled")
    if options.rewrites is not None and options.distilled:
        raise UserError("--rewrites and --distilled both say where rewrites come from: give one")


def _check_compared(options: DiagnosisOptions, clients: Sequence[ClientData]) -> None:
    """What is measured between clients needs two of them."""
    asked = {
        "--gradients": options.gradients,
        "--distilled": options.distilled,
        "--rewrites": options.rewrites,
    }
    given = [option for option, value in asked.items() if value is not None]
    if given and len(clients) < 2:
        raise UserError(
            f"{given[0]} compares clients, and there is only {clients[0].name!r}: remove it, or "
            "add a source of another client"
        )


def _loads(recipe: Recipe, options: DiagnosisOptions) -> bool:
    if not options.model:
        return False
    asked = options.gradients is not None or options.distilled is not None
    return asked or recipe.uses_lab or _weights(recipe) <= SMALL


def _weights(recipe: Recipe) -> float:
    """Bytes of a folder's weights; a hub name's are not known, and so not small."""
    with plan_folder(recipe) as path:
        weights = Path(path).glob("*.safetensors")
        return sum(file.stat().st_size for file in weights) or float("inf")


def _chat(recipe: Recipe) -> tuple[ChatFormat, int]:
    """How to talk to the model, and its context, without its weights."""
    with plan_folder(recipe) as path:
        return load_chat(path, recipe.model), context_of(path)


def _passes(recipe: Recipe, clients: Sequence[ClientData]) -> dict[str, float]:
    """How often stage 2 of a whole run sees each record of a client that always takes part."""
    seen = recipe.federation.rounds * recipe.local.rectify_steps
    size = recipe.local.batch_size
    return {c.name: seen * min(size, len(c.train)) / len(c.train) for c in clients}


def _heterogeneity(
    recipe: Recipe,
    options: DiagnosisOptions,
    loaded: LoadedRun | None,
    usable: Mapping[str, Sequence[Record]],
    reporter: Reporter,
) -> dict[str, Any]:
    seed = recipe.seed
    texts = {name: [r.response for r in records] for name, records in usable.items()}
    if wordless := [name for name, each in texts.items() if not any(map(split_words, each))]:
        raise UserError(
            f"client {wordless[0]!r} has no words in its responses: remove its source, or name "
            "the responses' column with fields.response"
        )
    found: dict[str, Any] = {"apart": _flat(measure_divergence(texts, seed))}
    rewrites = _rewrites(recipe, options, loaded, usable, reporter)
    if loaded:
        drawn = _sample(usable, options.gradients or SAMPLE, seed)
        gradients = _gradients(loaded, recipe, {n: [(r, r.response) for r in each]
                                               for n, each in drawn.items()})  # fmt: skip
        found["gradients"] = _flat(gradients.measured())
    if rewrites:
        found["rewriting"] = _before_and_after(recipe, loaded, rewrites)
    found["map"] = _map(usable, rewrites, seed)
    return found


def _sample(
    usable: Mapping[str, Sequence[Record]], count: int, seed: int
) -> dict[str, list[Record]]:
    """`count` records of each client (all where there are fewer), in the order of the files."""
    drawn = {}
    for name, records in usable.items():
        random = np.random.default_rng(seeds.derive_seed(seed, "diagnose", name))
        chosen = random.permutation(len(records))[:count]
        drawn[name] = [records[index] for index in sorted(chosen)]
    return drawn


def _gradients(
    loaded: LoadedRun, recipe: Recipe, pairs: Mapping[str, Sequence[tuple[Record, str]]]
) -> GroupedGradients:
    examples = {
        name: loaded.tokenise(name, [r for r, _ in each], [text for _, text in each])
        for name, each in pairs.items()
    }
    first = first_adapter(loaded.model, recipe.seed)
    size = recipe.local.batch_size
    return GroupedGradients(loaded.model, examples, first, loaded.base.pad, size)


def _rewrites(
    recipe: Recipe,
    options: DiagnosisOptions,
    loaded: LoadedRun | None,
    usable: Mapping[str, Sequence[Record]],
    reporter: Reporter,
) -> SampledRewrites:
    """Of a file, by the model, or from the cache where that has all of a sample."""
    if options.rewrites is not None:
        return _from_file(options.rewrites, usable, recipe)
    if loaded is None:
        return {}
    sample = _sample(usable, options.distilled or options.gradients or SAMPLE, recipe.seed)
    rewriter = open_rewriter(loaded, recipe)
    with rewrite_cache() as cache:
        cached = all(all(rewriter.cached(cache, each)) for each in sample.values())
        if not options.distilled and not cached:
            return {}
        made = rewriter.rewrite(cache, reporter, sample)
    return {name: [(each.record, each.text) for each in mine] for name, mine in made.items()}


def _from_file(
    path: Path, usable: Mapping[str, Sequence[Record]], recipe: Recipe
) -> SampledRewrites:
    given = read_source(Source(path=str(path)), recipe.seed, recipe.data.learn).records
    known = {prompt_key(r): r.response for r in given}
    found = {
        name: [(r, known[prompt_key(r)]) for r in records if prompt_key(r) in known]
        for name, records in usable.items()
    }
    if lacking := [name for name, each in found.items() if not each]:
        raise UserError(
            f"--rewrites {path} has no prompt of client {lacking[0]!r}: give a file with the same "
            "prompts as the data, and rewrites as responses"
        )
    return found


def _before_and_after(
    recipe: Recipe, loaded: LoadedRun | None, rewrites: SampledRewrites
) -> dict[str, Any]:
    """The same records raw and rewritten: texts, at equal word counts too, and gradients."""
    raw = {name: [r.response for r, _ in each] for name, each in rewrites.items()}
    new = {name: [text for _, text in each] for name, each in rewrites.items()}
    size = min(fewest_words(raw), fewest_words(new)) * 3 // 4  # random groups may have fewer
    seed = recipe.seed
    pairs = [pair for each in rewrites.values() for pair in each]
    found = {
        "records": {name: len(each) for name, each in rewrites.items()},
        "kept_raw": sum(r.response.strip() == text.strip() for r, text in pairs),
        "raw": _flat(measure_divergence(raw, seed, max(1, size))),
        "rewritten": _flat(measure_divergence(new, seed, max(1, size))),
        "change": _flat(divergence_change(raw, new, seed)),
        "raw_text": text_stats([r.response for r, _ in pairs])._asdict(),
        "rewritten_text": text_stats([text for _, text in pairs])._asdict(),
    }
    if loaded:
        limit = SAMPLE
        before = _gradients(loaded, recipe, {
            n: [(r, r.response) for r, _ in each[:limit]] for n, each in rewrites.items()
        })  # fmt: skip
        after = _gradients(loaded, recipe, {n: each[:limit] for n, each in rewrites.items()})
        found["raw_gradients"] = _flat(before.measured())
        found["rewritten_gradients"] = _flat(after.measured())
        found["gradient_change"] = gradient_change(before, after, seed)._asdict()
    return found


def _map(
    usable: Mapping[str, Sequence[Record]], rewrites: SampledRewrites, seed: int
) -> list[dict[str, Any]]:
    """Positions of sampled responses, raw and rewritten ones on one map."""
    count = max(1, min(MAPPED, MAP_SIZE // len(usable)))
    if rewrites:
        shown = {name: each[:count] for name, each in rewrites.items()}
        points = [(n, "raw", r.response) for n, each in shown.items() for r, _ in each]
        points += [(n, "rewritten", text) for n, each in shown.items() for _, text in each]
    else:
        drawn = _sample(usable, count, seed)
        points = [(n, "raw", r.response) for n, each in drawn.items() for r in each]
    texts = [text for _, _, text in points]
    if len({tuple(sorted(split_words(text))) for text in texts}) < FEWEST_POINTS:
        return []
    places = response_map(texts, "tsne", seed)
    return [
        {"client": name, "side": side, "x": float(x), "y": float(y)}
        for (name, side, _), (x, y) in zip(points, places, strict=True)
    ]


def _flat(value: Any) -> Any:
    """Named tuples and matrices as JSON has them."""
    if isinstance(value, Pairwise):
        return {"names": list(value.names), "mean": value.mean, "matrix": value.matrix.tolist()}
    if isinstance(value, ClientDivergence | Change | Gradients | Interval):
        return {name: _flat(each) for name, each in value._asdict().items()}
    return value
