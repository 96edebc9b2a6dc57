"""The ablation that uploads S too: how it is built, and which choices it refuses."""

from typing import Any

from fedsdr.algorithms.contract import Algorithm
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import override_recipe
from support.toy_rounds import recipe

KEY = {"federation.targets": "two_shared_streams"}


def build_shared(name: str = "fedavg", **changes: Any) -> Algorithm:
    it = override_recipe(
        recipe(f"fedsdr+{name}" if name != "fedavg" else "fedsdr"), {**KEY, **changes}
    )
    return build_algorithm(it)


REFUSED_CHOICES = [
    ("federation.lora_aggregation", "flexlora"),
    ("federation.personalisation", "ditto"),
    ("federation.robust", "median"),
    ("federation.compression", "int8"),
    ("federation.algorithm", "local"),
    ("privacy.mode", "central"),
    ("lora.smoothing_rank", 4),
    ("local.smoothing_state", "reset"),
    ("local.stage_order", "rectify_first"),
    ("local.consolidate_steps", 3),
]
