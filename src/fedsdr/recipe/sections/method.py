"""`method`: what a recipe's keys are where it does not set them itself.

"paper" is FedSDR as published, which is what all other sections' defaults describe. "fedsdr2", the
default, was chosen by measurement (docs/findings.md) and tested on other seeds (docs/beyond.md):

* R, which is aggregated, learns from contrastive rewrites, and never sees an S: the global model
  is true and speaks the base model's own language;
* S learns the raw responses on top of W0 + R, at a lower rate, and is kept from round to round:
  a client's own model answers in its house style;
* both rehearse the base model's own texts, so that less is forgotten.

A recipe that names no method is of the paper's form where it trains one stream or sets one of
`STREAMS` itself.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from fedsdr.recipe.sections.base import Section

MethodName = Literal["paper", "fedsdr2"]
PAPER: Final[MethodName] = "paper"
FEDSDR2: Final[MethodName] = "fedsdr2"

TWO_STREAM: Final = "two_stream"
SLOWER: Final = 3  # S learns at R's rate, divided by this

ADDED: Final[Mapping[str, Any]] = {
    "distill.contrast": 1.0,
    "distill.contrast_floor": 0.03,
    "distill.temperature": 0.0,
    "rehearsal.share": 0.2,
    "local.rectify_targets": "distilled",
    "local.rectify_alone": 1.0,
    "local.smoothing_targets": "raw",
    "local.smoothing_context": "joint",
    "local.smoothing_state": "keep",
}


STREAMS: Final = tuple(key for key in ADDED if key.startswith("local."))
# Of these, what also tunes other methods: a recipe's own value stays when the method changes.
TUNED: Final = ("distill.temperature", "local.smooth_lr")


def default_method(tables: Mapping[str, Any]) -> MethodName:
    """The method of a recipe's tables that name none."""
    one_stream = _keys(tables.get("federation")).get("targets", TWO_STREAM) != TWO_STREAM
    local = _keys(tables.get("local"))
    chosen = any(key.removeprefix("local.") in local for key in STREAMS)
    return PAPER if one_stream or chosen else FEDSDR2


def method_keys(method: Any, rectify_lr: Any) -> dict[str, Any]:
    """The keys "a.b" that a method sets, with their values; none for the paper's.

    method, rectify_lr: as a recipe writes them, R's learning rate being the second; what is no
    method or no number is left for validation to refuse.
    """
    if method != FEDSDR2:
        return {}
    try:
        return {**ADDED, "local.smooth_lr": float(rectify_lr) / SLOWER}
    except (TypeError, ValueError, OverflowError):
        return {**ADDED}


def fill_keys(tables: Mapping[str, Any], rectify_lr: float) -> dict[str, Any]:
    """A recipe's tables with its method, and the method's keys where it does not set them itself.

    rectify_lr: the default. What is no table is left for validation to refuse.
    """
    filled, rate = dict(tables), _keys(tables.get("local")).get("rectify_lr", rectify_lr)
    filled.setdefault("method", default_method(tables))
    alone = _keys(tables.get("local")).get("batch_size") == 1  # no place for a rehearsed example
    for key, value in method_keys(filled["method"], rate).items():
        section, name = key.split(".")
        if alone and key == "rehearsal.share":
            continue
        if isinstance(filled.get(section, {}), Mapping | Section):
            filled[section] = {name: value, **_keys(filled.get(section))}
    return filled


def _keys(table: Any) -> dict[str, Any]:
    """The keys that a section sets; {} of what is none."""
    if isinstance(table, Section):
        return table.model_dump(exclude_unset=True)
    return dict(table) if isinstance(table, Mapping) else {}
