"""What a round costs beside training, and against rebuilding for each client.

    python benchmarks/rounds.py [--quick] [--rounds 6] [--runs 5]

`overhead`: the share of a FedSDR round outside the forward pass with its loss, the backward pass to
the freeing of its graph, and the optimiser with gradient clipping; on the five-domain recipe, whose
model is so small that whatever is not training weighs most. `rates`: client-rounds a minute of
FedAvg, 10 steps of batch 4, on the five clients' real files (190 tokens a record, so that matrix
products take most of a step) and in the lab (where calls do), against two patterns re-created on
today's libraries: "rebuilt for each message" loads the model, wraps it and makes a trainer for
every client message (Flower's example for language models); "rebuilt for each client" keeps the
model and makes trainer, optimiser and tokens anew for each client and round (OpenFedLLM). Both use
`transformers.Trainer`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from fedsdr.algorithms.contract import Round
from fedsdr.core.progress import silent_reporter
from fedsdr.federation.checkpoint import save_checkpoint
from fedsdr.federation.in_process import InProcessEngine
from fedsdr.federation.loaded import LoadedRun
from fedsdr.federation.rounds import run_round
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.training import local
from fedsdr.workflows.prepare import prepare_run
from measure import Row, arguments, compare, save, three
from rebuilding import each_client, each_message

RECIPES = Path(__file__).parents[1] / "recipes"
FIVE, LAB = RECIPES / "five_domains.toml", RECIPES / "lab.toml"
SMALL_STEPS = (
    "baselines=[]",
    "local.rectify_steps=10",
    "local.smooth_steps=10",
    "local.batch_size=4",
)
RAW = (*SMALL_STEPS, 'federation.targets="raw"')


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
        prepared = prepare_run(recipe)
        self.loaded: LoadedRun = prepared.load(silent_reporter())
        # What is measured does not depend on the targets: raw responses stand in for rewrites.
        examples = {name: {"raw": its, "distilled": its} for name, its in self.loaded.raw.items()}
        if clients is not None:
            kinds = list(examples.values())
            examples = {f"client{i}": kinds[i % len(kinds)] for i in range(clients)}
        method = prepared.methods[-1].within(folder)
        self.engine = InProcessEngine(self.loaded, method, examples, silent_reporter())
        self.folder, self.algorithm, self.round = folder, method.algorithm, 0
        self.state = self.algorithm.init(self.engine.first_adapter())

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
    training, batches = Clock(), Clock()
    trainer, adamw, utils = local.LocalTrainer, torch.optim.AdamW, torch.nn.utils
    timed: list[tuple[Any, str, Clock]] = [
        (trainer, "_backward", training),
        (trainer, "_batch", batches),  # within the other
        (adamw, "step", training),
        (adamw, "zero_grad", training),
        (utils, "clip_grad_norm_", training),
    ]
    shares = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for owner, name, clock in timed:
            call = getattr(owner, name)
            setattr(owner, name, clock.around(call))
            stack.callback(setattr, owner, name, call)
        federation = Federation(recipe, Path(folder))
        for _ in range(rounds + 1):
            training.seconds, batches.seconds, began = 0.0, 0.0, time.perf_counter()
            federation.run()
            seconds = time.perf_counter() - began
            shares.append(100 * (1 - (training.seconds - batches.seconds) / seconds))
    median, least, most = (f(shares[1:]) for f in (statistics.median, min, max))
    return [
        {"rounds": rounds, "overhead %": three(median), "least": three(least), "most": three(most)}
    ]


def rates(setting: str, path: Path, runs: int) -> list[Row]:
    """Client-rounds a minute, ours and those of both patterns, on the same records."""
    recipe = load_recipe(path, RAW)
    clients = prepare_run(recipe).clients
    at_once = load_recipe(path, [*RAW, f"local.cohort={len(clients)}"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, all = Federation(recipe, folder / "one"), Federation(at_once, folder / "all")
        again = each_client(recipe, one.loaded.base, clients, folder)
        anew = each_message(recipe, one.loaded.base, clients, folder)

        def minutes(round: Callable[[], float]) -> Callable[[], float]:
            return lambda: round() * 60

        contenders = {
            "rebuilt for each message": minutes(anew),
            "rebuilt for each client": minutes(again),
            "fedsdr": minutes(one.run),
            "fedsdr, all at once": minutes(all.run),
        }
        rows = compare(setting, contenders, "x", "rebuilt for each client", runs)
    named = {"x/s": "client-rounds/min"}
    return [{named.get(key, key): value for key, value in row.items()} for row in rows]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    runs = 1 if given.quick else given.runs
    tables = {
        "overhead": overhead(load_recipe(FIVE), 1 if given.quick else given.rounds),
        "rates": [*rates("real files", FIVE, runs), *rates("the lab", LAB, runs)],
    }
    save("rounds", tables, quick=given.quick)


if __name__ == "__main__":
    main()
