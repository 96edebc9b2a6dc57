"""What a round costs outside forward, backward and optimiser, on the five-domain recipe.

    python benchmarks/round_overhead.py [--rounds 6]

Runs FedSDR rounds in process and times, inside the same rounds, the three parts that any
trainer must spend: the model's forward pass with its loss, the backward pass, and the optimiser
with gradient clipping. The rest (loading and reading adapters, collating, aggregation, private
state and checkpoint on disk, log lines) is the overhead. Evaluation is not part of a round.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedsdr.algorithms.compose import build_algorithm
from fedsdr.algorithms.contract import Round
from fedsdr.engines.in_process import InProcess
from fedsdr.progress import silent
from fedsdr.recipe import load_recipe
from fedsdr.setting import prepare
from fedsdr.training import local
from fedsdr.training.checkpoint import save_checkpoint
from fedsdr.training.rounds import run_round
from fedsdr.training.store import ClientStore

RECIPE = Path(__file__).parents[1] / "recipes" / "five_domains.toml"


class Clock:
    """Seconds spent in wrapped calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def measure(rounds: int) -> list[float]:
    """The share of each round's time that is overhead; the first round warms up."""
    recipe = load_recipe(RECIPE)
    bench = prepare(recipe).workbench(silent())
    algorithm = build_algorithm(recipe)
    clock = Clock()
    local.summed_loss = clock.around(local.summed_loss)
    torch.Tensor.backward = clock.around(torch.Tensor.backward)  # type: ignore[method-assign]
    torch.optim.AdamW.step = clock.around(torch.optim.AdamW.step)  # type: ignore[method-assign]
    clip = clock.around(torch.nn.utils.clip_grad_norm_)
    torch.nn.utils.clip_grad_norm_ = clip  # type: ignore[assignment]
    # Overhead does not depend on what the targets say: the raw responses stand in for rewrites.
    examples = {name: {"raw": each, "distilled": each} for name, each in bench.raw.items()}
    shares = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = InProcess(bench, recipe, examples, ClientStore(folder / "clients"), silent())
        state = algorithm.init(bench.first_adapter(recipe.seed))
        for round in range(1, rounds + 2):
            clock.seconds, began = 0.0, time.perf_counter()
            state, _ = run_round(algorithm, engine, state, Round(round, 0), engine.clients())
            save_checkpoint(folder, round, state)
            engine.commit(round, engine.clients())
            shares.append(1 - clock.seconds / (time.perf_counter() - began))
    return shares[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    shares = measure(parser.parse_args().rounds)
    result = {
        "claim": "overhead of a FedSDR round outside forward, backward and optimiser",
        "recipe": RECIPE.name,
        "threads": torch.get_num_threads(),
        "rounds": len(shares),
        "median_percent": round(100 * statistics.median(shares), 2),
        "min_percent": round(100 * min(shares), 2),
        "max_percent": round(100 * max(shares), 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
