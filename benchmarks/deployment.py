"""What the long-lived trainer saves: with it, and with a model loaded for each message.

    python benchmarks/deployment.py [--quick]

Flower starts a new process for every message. First such a process by itself, from its start to its
end, that answers an evaluation: one hands it to a trainer over its socket
(`fedsdr.deploy.client.relay`), the other loads model and data itself. Then whole rounds of two
clients on Flower, SuperLink and SuperNodes on this machine: with trainers, and with a process
behind the socket that opens the client anew for every message. The model has the shape of
SmolLM2-135M and random weights, and a round trains one step.
"""

import contextlib
import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import tomli_w
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedsdr.core import files
from fedsdr.core.quiet import quiet_libraries
from fedsdr.deploy.client.relay import ask_trainer
from fedsdr.deploy.protocol.agreement import agreement_digest
from fedsdr.deploy.protocol.messages import Request, encode_message
from fedsdr.deploy.protocol.signing import read_private, seal_payload
from fedsdr.deploy.server.engine import adapter_shape
from fedsdr.deploy.sites.init import init_federation
from fedsdr.lab.pretrain import build_tokenizer
from fedsdr.lab.world import WorldOptions, build_world
from fedsdr.recipe.load import load_recipe
from measure import Row, arguments, compare, save, three

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {**SHAPE, "hidden_size": 36, "num_hidden_layers": 2, "intermediate_size": 64}

RELAYED = """
import sys
from pathlib import Path
import fedsdr.deploy.flower.client_app
from fedsdr.deploy.client import relay
relay.ask(Path(sys.argv[1]) / "trainer.sock", Path(sys.argv[2]).read_bytes())
"""
LOADED = """
import sys
from pathlib import Path
import fedsdr.deploy.flower.client_app
from fedsdr.deploy.sites.site import open_client
from fedsdr.core.progress import silent_reporter
client = open_client(Path(sys.argv[1]), silent_reporter())
sys.stdout.buffer.write(client(sys.stdin.buffer.read()))
"""
ANEW = """
import subprocess, sys
from pathlib import Path
from fedsdr.deploy.client.trainer import listen_socket, serve_requests
words = [sys.executable, "-c", sys.argv[2], sys.argv[1]]
answer = lambda data: subprocess.run(words, input=data, check=True, stdout=subprocess.PIPE).stdout
serve_requests(listen_socket(Path(sys.argv[1]) / "trainer.sock"), answer)
"""
FEDSDR = str(Path(sys.executable).with_name("fedsdr"))
UP = 120.0  # seconds that a SuperLink may take to start


def federation(
    folder: Path, shape: dict[str, int], clients: Sequence[str], rounds: int, port: int
) -> Path:
    """The folders of a server and some clients, their model random."""
    tokenizer = build_tokenizer(build_world(WorldOptions()))
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**shape, **ids, bos_token_id=None)).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": "what is the remedy ?", "response": "rx : bold anchor ;"}] * 8
    files.write_json_lines(folder / "data.jsonl", rows)
    data = str(folder / "data.jsonl")
    recipe = {
        "model": {"path": str(folder / "model")},
        "data": {"sources": [{"path": data, "client": client} for client in clients]},
        "federation": {"targets": "raw", "rounds": rounds},
        "local": {"rectify_steps": 1, "batch_size": 2},
        "evaluate": {"every": 0, "personal": False},
        "deployment": {"min_clients": len(clients)},
        "tracking": {"backends": ["none"]},
    }
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    init_federation(load_recipe(path), folder / "federation", "localhost", port)
    return folder / "federation"


@contextlib.contextmanager
def running(*words: str | Path) -> Iterator[None]:
    """A process and all that it starts, ended with the block."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        list(map(str, words)), stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            time.sleep(1)
        process.wait()


def messages(folder: Path, shape: dict[str, int], runs: int) -> list[Row]:
    """An evaluation, asked of a trainer, and of a process that loads the model for it."""
    sites = federation(folder, shape, ["hospital"], 1, 8000)
    client, message = sites / "hospital", folder / "message"
    recipe = load_recipe(sites / "server" / "recipe.toml")
    shared = adapter_shape(recipe).first
    key, number = read_private(sites / "server" / "server.key"), itertools.count(1)

    def evaluation() -> bytes:
        """An evaluation that the client has not carried out yet: the first one of a new run."""
        began = next(number)
        journal = files.read_json(client / "private" / "journal.json")["name"]
        request = Request(
            "evaluate", f"run-{began}", agreement_digest(recipe), "hospital", "fedavg", 0, shared,
            began=began, journal=journal,
        )  # fmt: skip
        return seal_payload(encode_message(request), key)

    def run(program: str) -> float:
        message.write_bytes(evaluation())
        with open(message, "rb") as question:
            words = [sys.executable, "-c", program, str(client), str(message)]
            subprocess.run(words, check=True, stdin=question, capture_output=True)
        return 1.0

    with running(FEDSDR, "deploy", "trainer", client):
        hello = Request("hello", "run", agreement_digest(recipe), "-", nonce="0" * 32)
        ask_trainer(
            client / "trainer.sock", seal_payload(encode_message(hello), key)
        )  # once it is up
        return compare(
            "one evaluation",
            {
                "handed to the trainer": lambda: run(RELAYED),
                "model loaded for it": lambda: run(LOADED),
            },
            "messages",
            against="model loaded for it",
            runs=runs,
        )


def seconds_of_rounds(
    folder: Path, shape: dict[str, int], rounds: int, trainer: bool
) -> list[float]:
    """Each round of two clients on Flower, but for the first."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    clients = ["hospital", "bank"]
    sites = federation(folder, shape, clients, rounds + 1, port)
    server = sites / "server"
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(server / "start.sh"))
        for client in clients:
            own = sites / client
            words = [FEDSDR, "deploy", "trainer"] if trainer else [sys.executable, "-c", ANEW]
            stack.enter_context(running(*words, own, *([] if trainer else [LOADED])))
            stack.enter_context(running(own / "relay" / "start.sh"))
        wait_for(port)
        for step in ("register", "run"):
            subprocess.run([FEDSDR, "deploy", step, str(server)], check=True, capture_output=True)
    rows = files.read_json_lines(server / "run" / "metrics.jsonl")
    return [row["train"]["seconds"] for row in rows if row["round"] > 1]


def wait_for(port: int) -> None:
    end = time.monotonic() + UP
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"no SuperLink on port {port} within {UP:g} s")


def whole_rounds(folder: Path, shape: dict[str, int], rounds: int) -> list[Row]:
    """One run after the other: rounds of one federation cannot take turns with another's."""
    taken = {
        name: seconds_of_rounds(folder / f"rounds-{trainer}", shape, rounds, trainer)
        for name, trainer in (("with trainers", True), ("model loaded for each message", False))
    }
    slow = statistics.median(taken["model loaded for each message"])
    return [
        {
            "setting": "a round of two clients",
            "contender": name,
            "seconds a round": three(statistics.median(seconds)),
            "least": three(min(seconds)),
            "most": three(max(seconds)),
            "times": three(slow / statistics.median(seconds)),
        }
        for name, seconds in taken.items()
    ]


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    quiet_libraries()
    shape = TINY if options.quick else SHAPE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rounds-True").mkdir()
        (folder / "rounds-False").mkdir()
        tables = {
            "messages": messages(folder, shape, 1 if options.quick else 5),
            "rounds": whole_rounds(folder, shape, 1 if options.quick else 5),
        }
    save("deployment", tables, quick=options.quick)


if __name__ == "__main__":
    main()
