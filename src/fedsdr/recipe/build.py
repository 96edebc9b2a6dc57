"""From a recipe's choices to one algorithm, and which choices exclude each other."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from fedsdr.algorithms.aggregation.error import with_aggregation_error
from fedsdr.algorithms.contract import Algorithm, Options, Schedule, Setup, Targets
from fedsdr.algorithms.limited import with_norm_limit
from fedsdr.algorithms.privacy import PrivacyOptions
from fedsdr.algorithms.table import TABLES, AlgorithmRow
from fedsdr.algorithms.two_stream import Smoothing
from fedsdr.algorithms.uncounted import with_equal_weights
from fedsdr.core.errors import UserError
from fedsdr.recipe.sections.recipe import Recipe


class Choice(NamedTuple):
    name: str
    row: AlgorithmRow
    options: Options

    def build(self, *parts: Any) -> Algorithm:
        return self.row.build(*parts)

    def has(self, trait: str) -> bool:
        return trait in self.row.traits


Transform = Callable[[Algorithm], Algorithm]
ChosenOptions = Mapping[str, Choice]  # "algorithm", "targets", ... -> what the recipe chose


def build_algorithm(
    recipe: Recipe, max_norm: float = math.inf, before_privacy: Transform | None = None
) -> Algorithm:
    """The recipe's algorithm, wearing its transforms, the innermost first.

    max_norm: of an update; larger ones are refused. before_privacy: put on what the transform of
    differential privacy is put on, where there is one. Raises `UserError` for unknown names or
    options, and for choices that exclude each other.
    """
    check_options(recipe)
    chosen = {key.rpartition(".")[2]: chosen_options(recipe, key) for key in TABLES}
    check_choices(recipe, chosen)
    schedule = Schedule(recipe.local.rectify_steps, recipe.local.rectify_lr)

    own, aggregation, personal = (
        chosen[key] for key in ("algorithm", "lora_aggregation", "personalisation")
    )
    it = own.build(Setup(schedule), own.options)
    it = aggregation.build(it, aggregation.options, *_smaller_ranks(recipe))
    it = chosen["robust"].build(it, chosen["robust"].options)
    if recipe.evaluate.aggregation_error and has_global_model(chosen):
        it = with_aggregation_error(it)
    it = chosen["targets"].build(it, smoothing_options(recipe))
    it = personal.build(it, personal.options, schedule, rectify_targets(recipe))
    if not recipe.federation.sample_counts:
        it = with_equal_weights(it)
    if before_privacy and recipe.privacy.mode != "none":
        it = before_privacy(it)
    it = with_norm_limit(chosen["mode"].build(it, privacy_options(recipe)), max_norm)
    return chosen["compression"].build(it, chosen["compression"].options)


def chosen_options(recipe: Recipe, key: str) -> Choice:
    """What the recipe chooses by a key of `TABLES`, with its options."""
    section, _, field = key.partition(".")
    name, table = getattr(getattr(recipe, section), field), TABLES[key]
    if name not in table:
        raise UserError(f"{key} = {name!r} is not known: choose from {', '.join(table)}")
    return Choice(name, table[name], read_options(name, recipe.options.get(name, {})))


def check_cohort(recipe: Recipe, cohort: int) -> None:
    """Raise `UserError` where a choice needs more clients than take part in a round."""
    for key in TABLES:
        name, row, options = chosen_options(recipe, key)
        if cohort < (least := row.least(options)):
            raise UserError(
                f"{key} = {name!r} needs at least {least} clients in a round, and {cohort} take "
                f"part: change options.{name}, federation.participation, or the choice"
            )


def check_options(recipe: Recipe) -> None:
    """Every `[options.NAME]` must be right, whether NAME is chosen here, by a baseline, or not."""
    for name, given in recipe.options.items():
        read_options(name, given)


def read_options(name: str, given: Mapping[str, Any]) -> Options:
    """The options of a name in any table, from their TOML."""
    rows = {name: row for table in TABLES.values() for name, row in table.items()}
    if name not in rows:
        known = ", ".join(n for n, row in rows.items() if row.options.model_fields)
        raise UserError(f"options.{name} is not known: there are options for {known}")
    options = rows[name].options
    try:
        return options.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(options.model_fields) or "none"
        raise UserError(
            f"options.{name}.{field} = {first['input']!r}: {first['msg']} (options: {known})"
        ) from error


def rectify_targets(recipe: Recipe) -> Targets:
    """What R learns from, and personal adapters with it."""
    targets = recipe.federation.targets
    if targets == "two_stream" or targets == "two_shared_streams":
        return recipe.local.rectify_targets
    return targets


def smoothing_options(recipe: Recipe) -> Smoothing:
    local = recipe.local
    return Smoothing(
        schedule=Schedule(local.smooth_steps, local.smooth_lr),
        state=local.smoothing_state,
        context=local.smoothing_context,
        alone=local.rectify_alone,
        decay=local.smoothing_decay,
        order=local.stage_order,
        smooth_on=local.smoothing_targets,
        rectify_on=local.rectify_targets,
        consolidation=Schedule(local.consolidate_steps, local.consolidate_lr)
        if local.consolidate_steps
        else None,
        consolidate_on=local.consolidate_targets,
    )


def privacy_options(recipe: Recipe) -> PrivacyOptions:
    return PrivacyOptions(
        clip=recipe.privacy.clip, noise_multiplier=recipe.privacy.noise_multiplier
    )


def has_global_model(chosen: ChosenOptions) -> bool:
    return chosen["lora_aggregation"].has("global") and not chosen["algorithm"].has("sends nothing")


def _smaller_ranks(recipe: Recipe) -> tuple[list[int], ...]:
    smaller = {*recipe.lora.ranks.values()} - {recipe.lora.rank}
    return (sorted(smaller),) if smaller else ()


# --- Which choices exclude each other


def _several_ranks(recipe: Recipe, chosen: ChosenOptions) -> bool:
    return bool(_smaller_ranks(recipe))


def _sends_nothing(recipe: Recipe, chosen: ChosenOptions) -> bool:
    return chosen["algorithm"].has("sends nothing")


def _rank_of_its_own(recipe: Recipe, chosen: ChosenOptions) -> bool:
    return recipe.lora.smoothing_rank not in (None, recipe.lora.rank)


def _measures_aggregation(recipe: Recipe, chosen: ChosenOptions) -> bool:
    return recipe.evaluate.aggregation_error


def _other_course(recipe: Recipe, chosen: ChosenOptions) -> bool:
    """S not kept, S trained last, or R consolidated."""
    local = recipe.local
    plain = local.smoothing_state == "keep" and local.stage_order == "smooth_first"
    return not plain or local.consolidate_steps > 0


def _is(key: str, *names: str) -> Callable[[Recipe, ChosenOptions], bool]:
    return lambda recipe, chosen: chosen[key].name in names


def _has(key: str, trait: str) -> Callable[[Recipe, ChosenOptions], bool]:
    return lambda recipe, chosen: chosen[key].has(trait)


def _not(test: Callable[[Recipe, ChosenOptions], bool]) -> Callable[[Recipe, ChosenOptions], bool]:
    return lambda recipe, chosen: not test(recipe, chosen)


_S_IS_SHARED: Final = "{targets} uploads S too, which is no longer private, as an ablation; "

# (a test, a test that must not hold at the same time, what to tell the user)
EXCLUSIONS: Final = (
    *(
        (
            _sends_nothing,
            _not(_is(key, default)),
            "{algorithm} sends nothing that " + key + " = {" + key + "} could work on: "
            f"set it to {default!r}",
        )
        for key, default in {
            "lora_aggregation": "factors",
            "personalisation": "none",
            "robust": "none",
            "compression": "none",
            "mode": "none",
        }.items()
    ),
    *(
        (
            _is("targets", "two_shared_streams"),
            test,
            _S_IS_SHARED + message,
        )
        for test, message in (
            (_sends_nothing, "{algorithm} sends nothing: choose fedavg"),
            (
                _not(_is("lora_aggregation", "factors")),
                "set federation.lora_aggregation to 'factors', not {lora_aggregation}",
            ),
            (_not(_is("personalisation", "none")), "set federation.personalisation to 'none'"),
            (_not(_is("robust", "none")), "set federation.robust to 'none', not {robust}"),
            (_not(_is("compression", "none")), "set federation.compression to 'none'"),
            (_not(_is("mode", "none")), "set privacy.mode to 'none', not {mode}"),
            (_rank_of_its_own, "leave lora.smoothing_rank out"),
            (
                _other_course,
                "set local.smoothing_state to 'keep', stage_order to 'smooth_first' and "
                "consolidate_steps to 0",
            ),
        )
    ),
    (
        _has("lora_aggregation", "fresh each round"),
        _has("algorithm", "server memory"),
        "{lora_aggregation} starts a fresh adapter each round, so what {algorithm} remembers of "
        "the last one means nothing: choose fedavg or fedprox, or another lora_aggregation",
    ),
    (
        _has("lora_aggregation", "fresh each round"),
        _has("compression", "feedback"),
        "{lora_aggregation} starts a fresh adapter each round, so the error feedback of "
        "{compression} means nothing: choose fp16, or another lora_aggregation",
    ),
    (
        _has("lora_aggregation", "folds"),
        _is("personalisation", "ditto"),
        "{lora_aggregation} moves the global model into its frozen part, towards which "
        "{personalisation} cannot pull: choose another lora_aggregation",
    ),
    (
        _has("algorithm", "client memory"),
        _not(_is("robust", "none")),
        "{algorithm} needs the mean of what all its clients remember, and {robust} takes less of "
        "some: choose fedavg or fedprox, or set federation.robust to 'none'",
    ),
    (
        _has("algorithm", "client memory"),
        _not(_is("mode", "none")),
        "{algorithm} adds up what its clients send over all rounds, and so the noise of {mode} "
        "privacy: choose fedavg or fedprox, or set privacy.mode to 'none'",
    ),
    (
        _is("algorithm", "feddyn"),
        _is("lora_aggregation", "flexlora"),
        "{algorithm}'s clients add up the changes of their factors, and {lora_aggregation} takes "
        "the mean of products: choose scaffold, or another lora_aggregation",
    ),
    (
        _is("mode", "central"),
        _not(_has("lora_aggregation", "linear")),
        "{mode} privacy gives {lora_aggregation} one noisy mean in place of the clients' updates, "
        "which leaves it nothing to do: set privacy.mode to 'local'",
    ),
    (
        _is("mode", "central"),
        _not(_is("robust", "none")),
        "{mode} privacy gives {robust} one noisy mean in place of the clients' updates, which "
        "leaves it nothing to do: set privacy.mode to 'local'",
    ),
    (
        _is("mode", "central"),
        _measures_aggregation,
        "evaluate.aggregation_error compares the new model with the clients' updates, and {mode} "
        "privacy shows one noisy mean in their place: set evaluate.aggregation_error to false",
    ),
    (
        _several_ranks,
        _not(_has("lora_aggregation", "ranks")),
        "lora.ranks needs an aggregation that can average several ranks, not {lora_aggregation}: "
        "choose flexlora or flora",
    ),
    (
        _several_ranks,
        _has("algorithm", "client memory"),
        "lora.ranks and {algorithm}, whose clients and server compare their tensors: choose "
        "another algorithm",
    ),
    (
        _several_ranks,
        _not(_is("robust", "none", "clipping")),
        "lora.ranks and robust = {robust}, which compares the updates entry by entry: set "
        "federation.robust to 'clipping' or 'none'",
    ),
    (
        _several_ranks,
        _not(_is("compression", "none")),
        "lora.ranks and compression = {compression}, which needs updates of one shape: set "
        "federation.compression to 'none'",
    ),
)


def check_choices(recipe: Recipe, chosen: ChosenOptions) -> None:
    """Raise `UserError` for the first two choices that exclude each other."""
    for one, other, message in EXCLUSIONS:
        if one(recipe, chosen) and other(recipe, chosen):
            names = {key: repr(choice.name) for key, choice in chosen.items()}
            raise UserError("these choices exclude each other: " + message.format(**names))
