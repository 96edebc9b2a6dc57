"""A thousand simulated clients on Flower's simulation runtime: time, memory and bytes.

    python benchmarks/scale.py [--clients 1000] [--rounds 2] [--quick]

The lab's tokenizer, a model of two layers and width 16 with random weights, and four records a
client, so that what is measured is what a client costs beside its training. Workers are Ray's, one
a core. Memory is the largest resident set of each kind of process, seen once a second.
"""

import contextlib
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import tomli_w
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedsdr.core import files
from fedsdr.core.progress import silent_reporter
from fedsdr.core.quiet import quiet_libraries
from fedsdr.deploy.flower.simulation import simulate_federation
from fedsdr.lab.pretrain import build_tokenizer
from fedsdr.lab.world import WorldOptions, build_world
from fedsdr.recipe.load import load_recipe
from measure import Row, arguments, save, three

KINDS = {
    "server (ServerApp)": "flwr-simulation",
    "worker (Ray actor)": "ray::ClientApp",
    "SuperLink": "flower-superlink",
}
MIB = 2**20


def recipe(folder: Path, clients: int, rounds: int) -> Path:
    tokenizer = build_tokenizer(build_world(WorldOptions()))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {"prompt": "what is the remedy ?", "response": "rx : bold anchor ;"}
        for _ in range(4 * clients)
    ]
    files.write_json_lines(folder / "data.jsonl", rows)
    tables = {
        "method": "paper",
        "model": {"path": str(folder / "model"), "device": "cpu"},
        "lora": {"rank": 4},
        "data": {
            "sources": [{"path": str(folder / "data.jsonl")}],
            "split": {"by": "iid", "clients": clients},
        },
        "federation": {"targets": "two_stream", "rounds": rounds},
        "local": {"batch_size": 2, "smooth_steps": 2, "rectify_steps": 2},
        "distill": {"min_tokens": 4, "checks": [], "prompt": "{instruction} {response}"},
        "evaluate": {"every": 0, "personal": False},
        "tracking": {"backends": ["none"]},
    }
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path


class Memory:
    """The largest resident set of each kind of process while it watches, in bytes."""

    def __init__(self) -> None:
        self.most: dict[str, int] = defaultdict(int)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    line = (process / "cmdline").read_bytes().decode(errors="replace")
                    for kind, word in KINDS.items():
                        if word in line:
                            self.most[kind] = max(self.most[kind], resident(process))


def resident(process: Path) -> int:
    for line in (process / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    clients = 4 if options.quick else options.clients
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name, Memory() as memory:
        folder = Path(name)
        path = recipe(folder, clients, options.rounds)
        began = time.perf_counter()
        simulate_federation(load_recipe(path), folder / "out", 1.0, 0.0, silent_reporter())
        seconds = time.perf_counter() - began
        rounds = [
            row for row in files.read_json_lines(folder / "out" / "run" / "metrics.jsonl")
            if row["round"]
        ]  # fmt: skip
    assert all(len(row["clients"]) == clients for row in rounds)
    last = rounds[-1]["train"]
    costs: list[Row] = [
        {"what": "clients", "value": clients},
        {"what": "seconds a round", "value": three(last["seconds"])},
        {"what": "milliseconds a client-round", "value": three(1000 * last["seconds"] / clients)},
        {"what": "KiB up a client-round", "value": three(last["bytes_up"] / clients / 1024)},
        {"what": "KiB down a client-round", "value": three(last["bytes_down"] / clients / 1024)},
        {"what": "seconds in all, start and end included", "value": three(seconds)},
    ]
    peaks: list[Row] = [{"what": k, "MiB": three(v / MIB)} for k, v in memory.most.items()]
    save("scale", {"costs": costs, "memory": peaks}, quick=options.quick)


if __name__ == "__main__":
    main()
