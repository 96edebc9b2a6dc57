"""How far the teacher of soft targets agrees with the words that clients learn.

    python -m experiments.agreement recipes/lab_soft.toml soft fedsd+soft verified_half

Of each of these methods of a recipe: the share of learnt tokens, and of first ones, that are the
teacher's likeliest, and of responses of which all are. Records without a reference, whose rewrite
was refused, are not among them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import NamedTuple

from fedsdr.algorithms.contract import Targets
from fedsdr.core.progress import silent_reporter
from fedsdr.data.example import Example
from fedsdr.federation.loaded import LoadedRun
from fedsdr.model.trials import rows_at_once
from fedsdr.recipe.load import load_recipe
from fedsdr.training.soft import teacher_predictions
from fedsdr.workflows.method import client_examples
from fedsdr.workflows.prepare import prepare_run


class Agreement(NamedTuple):
    """Shares: of tokens, of first tokens, and of whole responses that the teacher would write."""

    responses: int
    tokens: float
    first: float
    whole: float


def teacher_agreement(loaded: LoadedRun, examples: Sequence[Example], rows: int = 64) -> Agreement:
    """Of examples with references, so many at a time."""
    loaded.model.activate()
    taught = [example for example in examples if example.reference]
    agrees: list[list[bool]] = []
    size = rows_at_once(loaded.base.model, rows)
    for start in range(0, len(taught), size):
        some = taught[start : start + size]
        found = teacher_predictions(loaded.base.model, some, loaded.base.pad).argmax(-1)
        likeliest = iter(found.tolist())
        agrees += [[next(likeliest) == word for word in example.response] for example in some]
    return Agreement(
        responses=len(agrees),
        tokens=fmean(token for each in agrees for token in each),
        first=fmean(each[0] for each in agrees),
        whole=fmean(all(each) for each in agrees),
    )


def main(recipe: Path, names: Sequence[str]) -> None:
    run = prepare_run(load_recipe(recipe))
    loaded = run.load(silent_reporter())
    methods = {method.name: method for method in run.methods}
    with TemporaryDirectory() as folder:
        for name in names:
            method = methods[name].within(Path(folder))
            kinds = client_examples(loaded, method, silent_reporter())
            learnt: Targets = "raw" if method.recipe.federation.targets == "raw" else "distilled"
            examples = [example for kind in kinds.values() for example in kind[learnt]]
            count, *shares = teacher_agreement(loaded, examples)
            parts = zip(shares, ("tokens", "first tokens", "whole responses"), strict=True)
            words = ", ".join(f"{100 * share:.1f} % of {part}" for share, part in parts)
            print(f"{name}: {count} responses: the teacher agrees with {words}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
