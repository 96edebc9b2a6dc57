"""Training and rewriting of large shapes on a GPU, and how much of its matrix products they use.

    python benchmarks/gpu.py [--device cuda] [--shapes Llama-3.2-1B,Llama-2-7B] [--tiny] [--quick]

Random weights in bfloat16, rank 16 on all linear layers. `training` is `training.py`'s comparison
on real lengths, batches of 16: useful work is 4 FLOPs a weight of a matrix product and token
(forward, and backward to the inputs; the base is frozen), the vocabulary's product included, and
the bound is a large product's rate in the same turn. Gradients are checkpointed where a shape needs
it, for all alike: `with recomputation` counts those operations too. SFTTrainer is there if trl is
installed. `cohort` is `cohort.py`'s comparison, batches of 4, and `rewriting` is `rewriting.py`'s.
`--tiny` is a miniature that runs anywhere, the processor included.
"""

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

import cohort
from fedsdr.generation.table import GENERATORS
from fedsdr.model.lora import Stream, TwoStreamModel
from lengths import records, source
from measure import Row, alternate, arguments, compare, save, three
from rewriting import batches_of, jobs_of, speed
from shapes import product_weights, random_model
from training import TWO, examples, ours, products, repeated, rows_of, sft, with_streams

RECORDS = 512  # whose rewriting is measured
CHECKPOINTED = ("Llama-2-7B",)  # whose activations would not fit beside two copies of the weights
DTYPE = torch.bfloat16


class Size(NamedTuple):
    """How much is measured: rows, batches of jobs, records a batch, steps a turn, turns."""

    rows: int
    batches: int
    batch: int
    steps: int
    runs: int
    side: int  # of the product that is the bound
    clients: tuple[int, ...]  # at once


FULL = Size(32, 4, 16, 10, 5, 8192, (2, cohort.CLIENTS))
TINY = Size(4, 1, 2, 1, 1, 256, (cohort.CLIENTS,))


def rewriting(shape: str, model: Any, size: Size) -> list[Row]:
    jobs = batches_of(jobs_of(records(RECORDS), model.config.vocab_size), size.rows, size.batches)
    return speed(shape, model, jobs, size.rows, size.runs, generators=list(GENERATORS))


def training(shape: str, two: TwoStreamModel, device: str, size: Size) -> list[Row]:
    """A step with one stream and with two, and TRL's on a copy of the model."""
    again, batch = shape in CHECKPOINTED, size.batch
    given = examples(size.steps * batch, two.model.config.vocab_size)
    steps = {
        "fedsdr, R": ours(two, given, size=batch, again=again),
        TWO: ours(two, given, Stream.SMOOTH, size=batch, again=again),
    }
    if find_spec("trl"):
        copy = random_model(shape, DTYPE, device)
        steps["SFTTrainer"] = sft(copy, given, batch, activation_checkpointing=again)
    many = {name: repeated(step, size.steps) for name, step in steps.items()}
    matrices = product_weights(random_model(shape, DTYPE, "meta"))
    bound = products(DTYPE, matrices, device, size.side)
    rates = alternate({"matrix products": bound, **many}, size.runs, device)
    rows = rows_of(shape, rates, "SFTTrainer" if "SFTTrainer" in steps else "fedsdr, R")
    more = 1.5 if again else 1.0  # 6 FLOPs where the forward pass is computed twice
    for row in rows[1:]:
        row["with recomputation"] = three(more * float(row["of the bound"]))
    return rows


def cohorts(shape: str, two: TwoStreamModel, device: str, size: Size) -> list[Row]:
    """Eight clients at once, and one after another."""
    batch = min(4, size.batch)
    given = examples(2 * batch * cohort.CLIENTS, two.model.config.vocab_size)
    found = cohort.contenders(
        two, given, batch, sizes=size.clients, checkpointing=shape in CHECKPOINTED
    )
    return compare(shape, found, "steps", "one after another", size.runs, device)


def measure(shape: str, device: str, size: Size) -> dict[str, list[Row]]:
    """A shape's rows in each table; the model is adapted once it has rewritten."""
    model = random_model(shape, DTYPE, device)
    rewritten = rewriting(shape, model, size)
    two = with_streams(model)
    return {
        "training": training(shape, two, device, size),
        "cohort": cohorts(shape, two, device, size),
        "rewriting": rewritten,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default="Llama-3.2-1B,Llama-2-7B")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    small = given.tiny or given.quick
    shapes = ["tiny"] if small else given.shapes.split(",")
    measured = [measure(shape, given.device, TINY if small else FULL) for shape in shapes]
    tables = {name: [row for each in measured for row in each[name]] for name in measured[0]}
    save("gpu", tables, given.device, quick=small, lengths=source())


if __name__ == "__main__":
    main()
