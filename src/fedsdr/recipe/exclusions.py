"""Which choices of a recipe exclude each other, and what to choose instead: a row each."""

from collections.abc import Callable
from typing import Final, NamedTuple

from fedsdr.core.errors import UserError
from fedsdr.recipe.choices import Choice, Choices, smaller_ranks


class Exclusion(NamedTuple):
    """Two statements that must not both hold of a recipe's choices, and the remedy.

    message: a format with the names of the choices, by the fields of `Choices`.
    """

    one: Callable[[Choices], bool]
    other: Callable[[Choices], bool]
    message: str


def _sends_nothing(chosen: Choices) -> bool:
    return chosen.algorithm.has("sends nothing")


def _shares_both_streams(chosen: Choices) -> bool:
    return chosen.targets.name == "two_shared_streams"


def _adds_central_noise(chosen: Choices) -> bool:
    return chosen.mode.name == "central"


def _starts_afresh(chosen: Choices) -> bool:
    return chosen.lora_aggregation.has("fresh each round")


def _has_client_memory(chosen: Choices) -> bool:
    return chosen.algorithm.has("client memory")


def _has_several_ranks(chosen: Choices) -> bool:
    return bool(smaller_ranks(chosen.recipe))


def _has_own_smoothing_rank(chosen: Choices) -> bool:
    return chosen.recipe.lora.smoothing_rank not in (None, chosen.recipe.lora.rank)


def _changes_the_stages(chosen: Choices) -> bool:
    """S is not kept, S is trained last, or R is consolidated."""
    local = chosen.recipe.local
    plain = local.smoothing_state == "keep" and local.stage_order == "smooth_first"
    return not plain or local.consolidate_steps > 0


# What a shared S excludes says first what it is.
_S_IS_SHARED: Final = "{targets} uploads S too, which is no longer private, as an ablation; "

EXCLUSIONS: Final = (
    Exclusion(
        _sends_nothing,
        lambda c: c.lora_aggregation.name != "factors",
        "{algorithm} sends nothing that lora_aggregation = {lora_aggregation} could work on: "
        "set it to 'factors'",
    ),
    Exclusion(
        _sends_nothing,
        lambda c: c.personalisation.name != "none",
        "{algorithm} sends nothing that personalisation = {personalisation} could work on: "
        "set it to 'none'",
    ),
    Exclusion(
        _sends_nothing,
        lambda c: c.robust.name != "none",
        "{algorithm} sends nothing that robust = {robust} could work on: set it to 'none'",
    ),
    Exclusion(
        _sends_nothing,
        lambda c: c.compression.name != "none",
        "{algorithm} sends nothing that compression = {compression} could work on: "
        "set it to 'none'",
    ),
    Exclusion(
        _sends_nothing,
        lambda c: c.mode.name != "none",
        "{algorithm} sends nothing that mode = {mode} could work on: set it to 'none'",
    ),
    Exclusion(
        _shares_both_streams,
        _sends_nothing,
        _S_IS_SHARED + "{algorithm} sends nothing: choose fedavg",
    ),
    Exclusion(
        _shares_both_streams,
        lambda c: c.lora_aggregation.name != "factors",
        _S_IS_SHARED + "set federation.lora_aggregation to 'factors', not {lora_aggregation}",
    ),
    Exclusion(
        _shares_both_streams,
        lambda c: c.personalisation.name != "none",
        _S_IS_SHARED + "set federation.personalisation to 'none'",
    ),
    Exclusion(
        _shares_both_streams,
        lambda c: c.robust.name != "none",
        _S_IS_SHARED + "set federation.robust to 'none', not {robust}",
    ),
    Exclusion(
        _shares_both_streams,
        lambda c: c.compression.name != "none",
        _S_IS_SHARED + "set federation.compression to 'none'",
    ),
    Exclusion(
        _shares_both_streams,
        lambda c: c.mode.name != "none",
        _S_IS_SHARED + "set privacy.mode to 'none', not {mode}",
    ),
    Exclusion(
        _shares_both_streams,
        _has_own_smoothing_rank,
        _S_IS_SHARED + "leave lora.smoothing_rank out",
    ),
    Exclusion(
        _shares_both_streams,
        _changes_the_stages,
        _S_IS_SHARED + "set local.smoothing_state to 'keep', stage_order to 'smooth_first' and "
        "consolidate_steps to 0",
    ),
    Exclusion(
        _starts_afresh,
        lambda c: c.algorithm.has("server memory"),
        "{lora_aggregation} starts a fresh adapter each round, so what {algorithm} remembers of "
        "the last one means nothing: choose fedavg or fedprox, or another lora_aggregation",
    ),
    Exclusion(
        _starts_afresh,
        lambda c: c.compression.has("feedback"),
        "{lora_aggregation} starts a fresh adapter each round, so the error feedback of "
        "{compression} means nothing: choose fp16, or another lora_aggregation",
    ),
    Exclusion(
        lambda c: c.lora_aggregation.has("folds"),
        lambda c: c.personalisation.name == "ditto",
        "{lora_aggregation} moves the global model into its frozen part, towards which "
        "{personalisation} cannot pull: choose another lora_aggregation",
    ),
    Exclusion(
        _has_client_memory,
        lambda c: c.robust.name != "none",
        "{algorithm} needs the mean of what all its clients remember, and {robust} takes less of "
        "some: choose fedavg or fedprox, or set federation.robust to 'none'",
    ),
    Exclusion(
        _has_client_memory,
        lambda c: c.mode.name != "none",
        "{algorithm} adds up what its clients send over all rounds, and so the noise of {mode} "
        "privacy: choose fedavg or fedprox, or set privacy.mode to 'none'",
    ),
    Exclusion(
        lambda c: c.algorithm.name == "feddyn",
        lambda c: c.lora_aggregation.name == "flexlora",
        "{algorithm}'s clients add up the changes of their factors, and {lora_aggregation} takes "
        "the mean of products: choose scaffold, or another lora_aggregation",
    ),
    Exclusion(
        _adds_central_noise,
        lambda c: not c.lora_aggregation.has("linear"),
        "{mode} privacy gives {lora_aggregation} one noisy mean in place of the clients' updates, "
        "which leaves it nothing to do: set privacy.mode to 'local'",
    ),
    Exclusion(
        _adds_central_noise,
        lambda c: c.robust.name != "none",
        "{mode} privacy gives {robust} one noisy mean in place of the clients' updates, which "
        "leaves it nothing to do: set privacy.mode to 'local'",
    ),
    Exclusion(
        _adds_central_noise,
        lambda c: c.recipe.evaluate.aggregation_error,
        "evaluate.aggregation_error compares the new model with the clients' updates, and {mode} "
        "privacy shows one noisy mean in their place: set evaluate.aggregation_error to false",
    ),
    Exclusion(
        _has_several_ranks,
        lambda c: not c.lora_aggregation.has("ranks"),
        "lora.ranks needs an aggregation that can average several ranks, not {lora_aggregation}: "
        "choose flexlora or flora",
    ),
    Exclusion(
        _has_several_ranks,
        _has_client_memory,
        "lora.ranks and {algorithm}, whose clients and server compare their tensors: choose "
        "another algorithm",
    ),
    Exclusion(
        _has_several_ranks,
        lambda c: c.robust.name not in ("none", "clipping"),
        "lora.ranks and robust = {robust}, which compares the updates entry by entry: set "
        "federation.robust to 'clipping' or 'none'",
    ),
    Exclusion(
        _has_several_ranks,
        lambda c: c.compression.name != "none",
        "lora.ranks and compression = {compression}, which needs updates of one shape: set "
        "federation.compression to 'none'",
    ),
)


def check_choices(chosen: Choices) -> None:
    """Raise `UserError` for the first two choices that exclude each other."""
    for one, other, message in EXCLUSIONS:
        if one(chosen) and other(chosen):
            names = {
                key: repr(choice.name)
                for key, choice in chosen._asdict().items()
                if isinstance(choice, Choice)
            }
            raise UserError("these choices exclude each other: " + message.format(**names))
