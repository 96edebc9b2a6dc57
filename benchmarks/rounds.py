"""What a round costs beside training, against rebuilding for each client, and for how many clients.

    python benchmarks/rounds.py [--quick] [--rounds 6] [--runs 5]

On the five-domain recipe: five clients' real files and a tiny real model, so that whatever is not
training weighs most. `overhead`: the share of a FedSDR round outside the forward pass with its
loss, the backward pass, and the optimiser with gradient clipping. `rates`: client-rounds a minute
of FedAvg, 10 steps of batch 4, against two patterns re-created on today's libraries: "rebuilt for
each message" loads the model, wraps it and makes a trainer for every client message (Flower's
example for language models); "rebuilt for each client" keeps the model and makes trainer,
optimiser and tokens anew for each client and round (OpenFedLLM). Both use `transformers.Trainer`.
`memory`: the peak of a process that runs a round of so many clients.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from fedsdr.algorithms.compose import build_algorithm
from fedsdr.algorithms.contract import Round
from fedsdr.engines.in_process import InProcess
from fedsdr.engines.workbench import Workbench
from fedsdr.progress import silent
from fedsdr.recipe import load_recipe
from fedsdr.sections.recipe import Recipe
from fedsdr.setting import prepare
from fedsdr.training import local
from fedsdr.training.checkpoint import save_checkpoint
from fedsdr.training.rounds import run_round
from fedsdr.training.store import ClientStore
from measure import Row, arguments, compare, save, three
from rebuilding import each_client, each_message

RECIPE = Path(__file__).parents[1] / "recipes" / "five_domains.toml"
SMALL_STEPS = (
    "baselines=[]",
    'federation.targets="raw"',
    "local.rectify_steps=10",
    "local.batch_size=4",
)


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


class Federation:
    """A recipe's clients, and its rounds one after another, with checkpoints as in a run."""

    def __init__(self, recipe: Recipe, folder: Path, clients: int | None = None) -> None:
        self.bench: Workbench = prepare(recipe).workbench(silent())
        # What is measured does not depend on the targets: raw responses stand in for rewrites.
        examples = {name: {"raw": its, "distilled": its} for name, its in self.bench.raw.items()}
        if clients is not None:
            kinds = list(examples.values())
            examples = {f"client{i}": kinds[i % len(kinds)] for i in range(clients)}
        store = ClientStore(folder / "clients")
        self.engine = InProcess(self.bench, recipe, examples, store, silent())
        self.folder, self.algorithm, self.round = folder, build_algorithm(recipe), 0
        self.state = self.algorithm.init(self.bench.first_adapter(recipe.seed))

    def run(self) -> float:
        """One round; returns the number of clients."""
        self.round += 1
        engine, clients = self.engine, self.engine.clients()
        self.state, _ = run_round(self.algorithm, engine, self.state, Round(self.round, 0), clients)
        save_checkpoint(self.folder, self.round, self.state)
        engine.commit(self.round, clients)
        return len(clients)


def overhead(recipe: Recipe, rounds: int) -> list[Row]:
    """The share of each round's time that is not training; the first round warms up."""
    clock = Clock()
    before = local.summed_loss, torch.Tensor.backward, torch.optim.AdamW.step
    clip = torch.nn.utils.clip_grad_norm_
    local.summed_loss = clock.around(local.summed_loss)
    torch.Tensor.backward = clock.around(torch.Tensor.backward)  # type: ignore[method-assign]
    torch.optim.AdamW.step = clock.around(torch.optim.AdamW.step)  # type: ignore[method-assign]
    torch.nn.utils.clip_grad_norm_ = clock.around(clip)  # type: ignore[assignment]
    shares = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            federation = Federation(recipe, Path(folder))
            for _ in range(rounds + 1):
                clock.seconds, began = 0.0, time.perf_counter()
                federation.run()
                shares.append(100 * (1 - clock.seconds / (time.perf_counter() - began)))
    finally:
        local.summed_loss, torch.Tensor.backward, torch.optim.AdamW.step = before  # type: ignore[method-assign]
        torch.nn.utils.clip_grad_norm_ = clip
    median, least, most = (f(shares[1:]) for f in (statistics.median, min, max))
    return [
        {"rounds": rounds, "overhead %": three(median), "least": three(least), "most": three(most)}
    ]


def rates(recipe: Recipe, runs: int) -> list[Row]:
    """Client-rounds a minute, ours and those of both patterns, on the same files."""
    setting = prepare(recipe)
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(recipe, Path(folder))
        base, clients = federation.bench.base, setting.clients
        again = each_client(recipe, base, clients, Path(folder))
        anew = each_message(recipe, base, clients, Path(folder))

        def minutes(round: Callable[[], float]) -> Callable[[], float]:
            return lambda: round() * 60

        contenders = {
            "rebuilt for each message": minutes(anew),
            "rebuilt for each client": minutes(again),
            "fedsdr": minutes(federation.run),
        }
        rows = compare("10 steps of batch 4", contenders, "x", "fedsdr", runs)
    return [_against_ours(row) for row in rows]


def _against_ours(row: Row) -> Row:
    """Client-rounds a minute, and how many of ours take the time of one of these."""
    faster = {key: three(1 / float(row[key])) for key in ("times", "least", "most")}
    return {
        "pattern": row["contender"],
        "client-rounds/min": row["x/s"],
        "fedsdr is faster by": faster["times"],
        "least": faster["most"],
        "most": faster["least"],
    }


def memory(counts: Iterable[int]) -> list[Row]:
    """Peaks of processes of their own."""
    rows: list[Row] = []
    for count in counts:
        command = [sys.executable, __file__, "--clients", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"clients": count, "peak MiB": json.loads(done.stdout.splitlines()[-1])})
    return rows


def peak(recipe: Recipe, clients: int) -> int:
    """MiB of this process after a round of so many clients."""
    with tempfile.TemporaryDirectory() as folder:
        Federation(recipe, Path(folder), clients).run()
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clients", type=int, help="print this process's peak of memory alone")
    given = parser.parse_args()
    small = load_recipe(RECIPE, SMALL_STEPS)
    if given.clients:
        print(peak(small, given.clients))
        return
    tables = {
        "overhead": overhead(load_recipe(RECIPE), 1 if given.quick else given.rounds),
        "rates": rates(small, 1 if given.quick else given.runs),
        "memory": memory((2, 4) if given.quick else (2, 20, 200)),
    }
    save("rounds", tables, quick=given.quick)


if __name__ == "__main__":
    main()
