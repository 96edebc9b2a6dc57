"""Clients trained at once against one after another, on the lab's model, and what they hold.

    python benchmarks/cohort.py [--quick]

The lab of recipes/lab.toml (pretrained once, then cached in $FEDSDR_CACHE), 8 clients dealt its
records, batches of 4, 10 steps of one stage that trains R beside S. A turn is one stage of all 8.
The second table is of what 8 clients hold at once: one base, whatever their number.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fedsdr.algorithms.contract import Schedule, Stage
from fedsdr.core.adapters import Private, fresh_adapter
from fedsdr.core.progress import silent_reporter
from fedsdr.data.example import Example
from fedsdr.federation.cohort_size import bytes_of_a_client
from fedsdr.federation.loaded import LoadedRun
from fedsdr.model.lora import TwoStreamModel
from fedsdr.recipe.load import load_recipe
from fedsdr.training.cohort import train_cohort
from fedsdr.training.local import LocalTrainer
from fedsdr.workflows.prepare import prepare_run
from measure import Contender, Row, arguments, compare, save, three

RECIPE = Path(__file__).parents[1] / "recipes" / "lab.toml"
CLIENTS, STEPS = 8, 10


def dealt(records: Sequence[Example]) -> list[list[Example]]:
    """The records of all clients, dealt to 8."""
    return [list(records[k::CLIENTS]) for k in range(CLIENTS)]


def contenders(
    model: TwoStreamModel,
    records: Sequence[Example],
    batch: int,
    pad: int = 0,
    sizes: Sequence[int] = (2, 4, CLIENTS),
    checkpointing: bool = False,
) -> dict[str, Contender]:
    trainers = [
        LocalTrainer(
            model, {"raw": own}, client=str(k), round=1, seed=0, batch_size=batch, clip=1.0,
            weight_decay=0.0, pad=pad, checkpointing=checkpointing,
        )
        for k, own in enumerate(dealt(records))
    ]  # fmt: skip
    r, s = (fresh_adapter(model.blank(), torch.Generator().manual_seed(seed)) for seed in (0, 1))
    stage = Stage("rectify", "R", Schedule(STEPS, 1e-3), r, private=Private(s))

    def alone() -> float:
        for trainer in trainers:
            trainer(stage)
        return CLIENTS * STEPS

    def together(size: int) -> Contender:
        def train() -> float:
            for start in range(0, CLIENTS, size):
                some = trainers[start : start + size]
                train_cohort(some, [replace(stage)] * len(some))
            return CLIENTS * STEPS

        return train

    return {
        "one after another": alone,
        **{f"{size} at once": together(size) for size in sizes},
    }


def memory(loaded: LoadedRun, batch: int) -> list[Row]:
    """MiB on the device by number of clients at once: the base, and what grows with them."""
    recipe = load_recipe(RECIPE, [f"local.batch_size={batch}"])
    base = sum(p.nbytes for p in loaded.model.model.parameters()) / 2**20
    longest = max(len(example) for each in loaded.raw.values() for example in each)
    each = (bytes_of_a_client(loaded, recipe, longest) or 0) / 2**20
    return [
        {"clients at once": k, "base MiB": three(base), "clients' MiB (estimate)": three(k * each)}
        for k in (1, 2, 4, CLIENTS)
    ]


def main() -> None:
    given = arguments(__doc__).parse_args()
    loaded = prepare_run(load_recipe(RECIPE)).load(silent_reporter())
    records = [example for each in loaded.raw.values() for example in each]
    rows: list[Row] = []
    for batch in (4,) if given.quick else (4, 16, 32):
        found = contenders(loaded.model, records, batch, loaded.base.pad)
        runs = 1 if given.quick else 7
        rows += compare(f"batch {batch}", found, "steps", "one after another", runs)
    save("cohort", {"speed": rows, "memory": memory(loaded, 4)}, quick=given.quick)


if __name__ == "__main__":
    main()
