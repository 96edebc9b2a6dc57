"""Training and rewriting of large shapes on a GPU, and how much of its matrix products they use.

    python benchmarks/gpu.py [--device cuda] [--shapes Llama-3.2-1B,Llama-2-7B] [--tiny] [--quick]

Random weights in bfloat16. A training step runs both streams, rank 16 on all linear layers, R
being trained; its useful work is 4 FLOPs a parameter and token (forward, and backward to the
inputs; the base is frozen), and `utilisation %` is that over the rate of a large matrix product
measured in the same process. Rewriting is `rewriting.py`'s comparison. `--tiny` is a miniature
that runs anywhere, the processor included.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from fedsdr.adapters import fresh
from fedsdr.data.batches import collate
from fedsdr.data.template import Example
from fedsdr.model.checkpointing import recomputed
from fedsdr.model.generators import GENERATORS
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.training.loss import summed_loss
from lengths import records
from measure import Row, alternate, arguments, save, three, wait
from rewriting import batches_of, jobs_of, speed
from shapes import random_model

RANK, LENGTH, RECORDS = 16, 512, 512


def product_rate(device: str, dtype: torch.dtype, side: int) -> float:
    """FLOPs a second of a square product; many are queued, so that none waits to be started."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    a @ a
    wait(device)
    began, products = time.perf_counter(), 20
    for _ in range(products):
        a @ a
    wait(device)
    return products * 2 * side**3 / (time.perf_counter() - began)


def training(model: Any, device: str, rows: int, length: int) -> Callable[[], float]:
    """A step of stage 2 on full rows; returns its tokens."""
    two = TwoStreamModel(model, "all-linear", RANK, 2 * RANK)
    for stream in (Stream.RECTIFY, Stream.SMOOTH):
        two.load(stream, fresh(two.read(stream), torch.Generator().manual_seed(0)))
    two.activate(Stream.RECTIFY, Stream.SMOOTH)
    parameters = list(two.train_only(Stream.RECTIFY).values())
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ids = torch.randint(3, model.config.vocab_size, (rows, length)).tolist()
    batch = collate([Example(row[: length // 2], row[length // 2 :]) for row in ids], 0).to(device)

    def step() -> float:
        with recomputed(model, True):
            (summed_loss(model, batch) / batch.response_tokens).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return rows * length

    return step


def measure(shape: str, device: str, tiny: bool, runs: int) -> tuple[Row, list[Row]]:
    """A shape's training row and its rewriting rows."""
    dtype = torch.bfloat16
    peak = product_rate(device, dtype, 256 if tiny else 8192)
    model = random_model(shape, dtype, device)
    jobs = batches_of(
        jobs_of(records(RECORDS), model.config.vocab_size), 4 if tiny else 32, 1 if tiny else 4
    )
    rewriting = speed(
        shape, model, jobs[:4] if tiny else jobs, 4 if tiny else 32, runs,
        generators=list(GENERATORS),
    )  # fmt: skip
    weights = sum(w.numel() for name, w in model.named_parameters() if "embed" not in name)
    step = training(model, device, 2 if tiny else 8, 32 if tiny else LENGTH)
    rates = sorted(alternate({"step": step}, runs, device)["step"])
    rate = rates[len(rates) // 2]
    row: Row = {
        "shape": shape,
        "tokens/s": three(rate),
        "product TFLOP/s": three(peak / 1e12),
        "utilisation %": three(100 * 4 * weights * rate / peak),
    }
    return row, rewriting


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default="Llama-3.2-1B,Llama-2-7B")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    small = given.tiny or given.quick
    shapes = ["tiny"] if small else given.shapes.split(",")
    measured = [measure(shape, given.device, small, 1 if small else 5) for shape in shapes]
    tables = {
        "training": [row for row, _ in measured],
        "rewriting": [row for _, rows in measured for row in rows],
    }
    save("gpu", tables, given.device, quick=small)


if __name__ == "__main__":
    main()
