"""From a recipe's choices to one algorithm."""

import math
from collections.abc import Callable

from fedsdr.algorithms.aggregation.error import with_aggregation_error
from fedsdr.algorithms.contract import Algorithm, Schedule, Setup, Targets
from fedsdr.algorithms.privacy import PrivacyOptions
from fedsdr.algorithms.two_stream import Smoothing
from fedsdr.algorithms.uploads import with_equal_weights, with_norm_limit
from fedsdr.recipe.choices import (
    all_choices,
    check_options,
    has_global_model,
    smaller_ranks,
    stage_loss,
)
from fedsdr.recipe.exclusions import check_choices
from fedsdr.recipe.sections.recipe import Recipe

Transform = Callable[[Algorithm], Algorithm]


def build_algorithm(
    recipe: Recipe,
    max_norm: float = math.inf,
    before_privacy: Transform | None = None,
    custom: Algorithm | None = None,
) -> Algorithm:
    """The recipe's algorithm, wearing its transforms, the innermost first.

    max_norm: of an update; larger ones are refused. before_privacy: put on what the transform of
    differential privacy is put on, where there is one. custom: takes the place of what
    `federation.algorithm` names. Raises `UserError` for unknown names or
    options, and for choices that exclude each other.
    """
    check_options(recipe)
    chosen = all_choices(recipe)
    check_choices(chosen)
    schedule = Schedule(recipe.local.rectify_steps, recipe.local.rectify_lr)

    own, aggregation, personal = chosen.algorithm, chosen.lora_aggregation, chosen.personalisation
    it = own.build(Setup(schedule), own.options) if custom is None else custom
    it = aggregation.build(it, aggregation.options, *smaller_ranks(recipe))
    it = chosen.robust.build(it, chosen.robust.options)
    if recipe.evaluate.aggregation_error and has_global_model(chosen):
        it = with_aggregation_error(it)
    it = chosen.loss.build(it, chosen.loss.options)
    it = chosen.targets.build(it, smoothing_options(recipe))
    loss = stage_loss(recipe, chosen.loss.name)
    it = personal.build(it, personal.options, schedule, rectify_targets(recipe), loss)
    if not recipe.federation.sample_counts:
        it = with_equal_weights(it)
    if before_privacy and recipe.privacy.mode != "none":
        it = before_privacy(it)
    it = with_norm_limit(chosen.mode.build(it, privacy_options(recipe)), max_norm)
    return chosen.compression.build(it, chosen.compression.options)


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
        smooth_loss=stage_loss(recipe, local.smoothing_loss),
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
