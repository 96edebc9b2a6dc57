"""fedsdr: federated fine-tuning of language models with self-distillation and rectification.

    import fedsdr

    run = fedsdr.run("my.toml", out="runs/mine")
    print(run.metrics())
    model, tokenizer = run.model("global")

docs/python.md has a page about it. Names are loaded when they are first used, so that the import
itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsdr.api.federation import Federation as Federation
    from fedsdr.api.judging import judge_endpoint as judge_endpoint
    from fedsdr.api.recipes import check as check
    from fedsdr.api.recipes import compare_prompts as compare_prompts
    from fedsdr.api.recipes import diagnose as diagnose
    from fedsdr.api.recipes import distill as distill
    from fedsdr.api.recipes import pilot_distillation as pilot_distillation
    from fedsdr.api.recipes import plan as plan
    from fedsdr.api.rewriting import rewrite as rewrite
    from fedsdr.api.runs import Comparison as Comparison
    from fedsdr.api.runs import Run as Run
    from fedsdr.api.runs import benchmark_models as benchmark_models
    from fedsdr.api.runs import compare as compare
    from fedsdr.api.runs import demo as demo
    from fedsdr.api.runs import open_comparison as open_comparison
    from fedsdr.api.runs import open_run as open_run
    from fedsdr.api.runs import run as run
    from fedsdr.core.errors import UserError as UserError
    from fedsdr.data.records import Record as Record
    from fedsdr.judge.asking import Prices as Prices
    from fedsdr.model.lora import TwoStreamModel as TwoStreamModel
    from fedsdr.recipe.load import load_recipe as load_recipe
    from fedsdr.recipe.sections.recipe import Recipe as Recipe

__version__ = "0.1.0"

_PLACES = {
    "fedsdr.api.federation": ("Federation",),
    "fedsdr.api.judging": ("judge_endpoint",),
    "fedsdr.api.recipes": (
        "check", "compare_prompts", "diagnose", "distill", "pilot_distillation", "plan",
    ),
    "fedsdr.api.rewriting": ("rewrite",),
    "fedsdr.api.runs": (
        "Comparison", "Run", "compare", "demo", "benchmark_models", "open_comparison", "open_run",
        "run",
    ),
    "fedsdr.core.errors": ("UserError",),
    "fedsdr.data.records": ("Record",),
    "fedsdr.judge.asking": ("Prices",),
    "fedsdr.model.lora": ("TwoStreamModel",),
    "fedsdr.recipe.load": ("load_recipe",),
    "fedsdr.recipe.sections.recipe": ("Recipe",),
}  # fmt: skip
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}
__all__ = ["__version__", *sorted(_PLACE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
