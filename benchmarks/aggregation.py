"""Aggregating a stream of updates: time per update against memory bandwidth, and memory.

    python benchmarks/aggregation.py [--quick] [--updates 10000] [--others 300] [--only fedavg]

The adapter has 4.9 million parameters: rank 16 on all linear layers of a model of SmolLM2-135M's
shape (30 blocks of width 576). FedAvg aggregates `--updates` of them, the other methods `--others`
(those that form products a tenth of that, those that keep every update 30). Each method runs in a
process of its own, so that its peak of memory is its own; the peak is read after a tenth of the
updates and after all of them. The bound is what any float64 sum of float32 updates must move,
20 bytes a parameter (read the sum and the update, write the sum), at the bandwidth of a copy that
fits into no cache, measured in the same process.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import torch

from fedsdr.algorithms.contract import Algorithm, Round, ServerState, Update, check_update
from fedsdr.core.adapters import Adapter, fresh_adapter
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.methods import named_recipe
from fedsdr.recipe.sections.model import Model
from fedsdr.recipe.sections.recipe import Recipe
from measure import arguments, peak, save, three

WIDTH, HIDDEN, KV, BLOCKS, RANK = 576, 1536, 192, 30, 16
LAYERS = {
    "q_proj": (WIDTH, WIDTH),
    "k_proj": (WIDTH, KV),
    "v_proj": (WIDTH, KV),
    "o_proj": (WIDTH, WIDTH),
    "gate_proj": (WIDTH, HIDDEN),
    "up_proj": (WIDTH, HIDDEN),
    "down_proj": (HIDDEN, WIDTH),
}
STREAMING = (
    "fedavg",
    "scaffold",
    "fedadam",
    "ffa",
    "rolora",
    "fedsa",
    "fedrot",
    "clipping",
    "int8",
)
FORMING = ("flexlora", "flora", "fedex")  # constant too, once they have formed the weights
KEEPING = ("median", "trimmed_mean", "krum")
BYTES = 20


def adapter(seed: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    like = {}
    for block in range(BLOCKS):
        for name, (inputs, outputs) in LAYERS.items():
            path = f"model.layers.{block}.{name}"
            like[f"{path}.lora_A.weight"] = torch.empty(RANK, inputs)
            like[f"{path}.lora_B.weight"] = torch.empty(outputs, RANK)
    return fresh_adapter(like, draw)


def like(template: Adapter, seed: int) -> Adapter:
    """A random update of the keys, shapes and dtypes that the algorithm asks for."""
    draw = torch.Generator().manual_seed(seed)

    def random(tensor: torch.Tensor) -> torch.Tensor:
        size = 0.01 if tensor.is_floating_point() else 40.0
        return (torch.randn(tensor.shape, generator=draw) * size).to(tensor.dtype)

    return {key: random(tensor) for key, tensor in template.items()}


def copied(update: Update) -> Update:
    return replace(update, change={key: t.clone() for key, t in update.change.items()})


def bandwidth() -> float:
    """Bytes a second that a copy of 256 MiB reads and writes together."""
    source, target = (torch.ones(2**26) for _ in range(2))
    seconds = []
    for _ in range(15):
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    return 2 * source.numel() * source.element_size() / statistics.median(seconds)


def stream(name: str, updates: int) -> dict[str, float | str | int]:
    """Aggregate that many updates of one method."""
    recipe = named_recipe(name, Recipe(model=Model(path="lab")))
    algorithm: Algorithm = build_algorithm(recipe)
    state: ServerState = algorithm.init(adapter(0))
    round = Round(1, 0, population=float(updates))
    template = algorithm.uploads(state, round)
    sent = [Update(like(template, seed), 1.0) for seed in range(3)]
    parameters = sum(tensor.numel() for tensor in template.values())
    fold = algorithm.start(state, round)
    adding, checking, early = [], [], 0.0
    for index in range(updates):
        # A copy each, as from the network: methods that keep updates keep them all.
        update = copied(sent[index % len(sent)])
        began = time.perf_counter()
        check_update("client", update, template, algorithm.ranks)
        checked = time.perf_counter()
        fold = algorithm.add(fold, update)
        adding.append(time.perf_counter() - checked)
        checking.append(checked - began)
        if index + 1 == max(1, updates // 10):
            early = peak()
    began = time.perf_counter()
    late = peak()
    algorithm.finish(state, fold, round)
    finished = time.perf_counter() - began
    bound = BYTES * parameters / bandwidth()  # last, since it takes memory itself
    return {
        "method": name,
        "updates": updates,
        "million_parameters_sent": three(parameters / 1e6),
        "add_ms": three(1e3 * statistics.median(adding)),
        "bound_ms": three(1e3 * bound),
        "times_bound": three(statistics.median(adding) / bound),
        "check_ms": three(1e3 * statistics.median(checking)),
        "finish_s": three(finished),
        "peak_mib_after_a_tenth": three(early),
        "peak_mib_after_all": three(late),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--others", type=int, default=300)
    parser.add_argument("--only", default="")
    parser.add_argument("--one", help="measure one method in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(stream(given.one, given.updates)))
        return
    if given.quick:
        given.updates, given.others = 20, 10
    names = given.only.split(",") if given.only else [*STREAMING, *FORMING, *KEEPING]
    rows = []
    for name in names:
        count = given.updates if name == "fedavg" else given.others
        count = max(10, given.others // 10) if name in FORMING else 30 if name in KEEPING else count
        command = [sys.executable, __file__, "--one", name, "--updates", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        print(json.dumps(rows[-1]), file=sys.stderr)
    save("aggregation", {"methods": rows}, quick=given.quick)


if __name__ == "__main__":
    main()
