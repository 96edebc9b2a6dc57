"""What the long-lived trainer saves: a message with it, and with a model loaded for each message.

    python benchmarks/deployment.py [--quick]

Flower starts a new process for every message. Both contenders are such a process, from its start to
its end, that answers the same evaluation: one hands it to a trainer over its socket
(`fedsdr.deploy.relay`), the other loads model and data itself. What Flower's own process adds to
either is not in it. The model has the shape of SmolLM2-135M and random weights.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import tomli_w
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedsdr import files
from fedsdr.deploy.agreement import agreement
from fedsdr.deploy.identity import read_private, seal
from fedsdr.deploy.init import init
from fedsdr.deploy.relay import ask
from fedsdr.deploy.server import Shape
from fedsdr.deploy.wire import Request, encode
from fedsdr.lab.pretrain import build_tokenizer
from fedsdr.lab.world import WorldOptions, build_world
from fedsdr.quiet import quiet_libraries
from fedsdr.recipe import load_recipe
from measure import arguments, compare, save

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {**SHAPE, "hidden_size": 36, "num_hidden_layers": 2, "intermediate_size": 64}

RELAYED = """
import sys
from pathlib import Path
import fedsdr.deploy.client_app
from fedsdr.deploy import relay
relay.ask(Path(sys.argv[1]) / "trainer.sock", Path(sys.argv[2]).read_bytes())
"""
LOADED = """
import sys
from pathlib import Path
import fedsdr.deploy.client_app
from fedsdr.deploy.site import open_client
from fedsdr.progress import silent
open_client(Path(sys.argv[1]), silent())(Path(sys.argv[2]).read_bytes())
"""


def site(folder: Path, shape: dict[str, int]) -> Path:
    """One client's folder, its model random."""
    tokenizer = build_tokenizer(build_world(WorldOptions()))
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**shape, **ids, bos_token_id=None)).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": "what is the remedy ?", "response": "rx : bold anchor ;"}] * 8
    files.write_json_lines(folder / "data.jsonl", rows)
    recipe = {
        "model": {"path": str(folder / "model")},
        "data": {"sources": [{"path": str(folder / "data.jsonl"), "client": "hospital"}]},
        "federation": {"targets": "raw"},
        "deployment": {"min_clients": 1},
    }
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    init(load_recipe(path), folder / "federation", "localhost", 8000)
    return folder / "federation"


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        federation = site(folder, TINY if options.quick else SHAPE)
        client, message = federation / "hospital", folder / "message"
        recipe = load_recipe(federation / "server" / "recipe.toml")
        shared = Shape(recipe).first
        request = Request("evaluate", "run", agreement(recipe), "hospital", "fedavg", 0, shared)
        message.write_bytes(
            seal(encode(request), read_private(federation / "server" / "server.key"))
        )
        trainer = subprocess.Popen(
            [str(Path(sys.executable).with_name("fedsdr")), "deploy", "trainer", str(client)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            ask(client / "trainer.sock", message.read_bytes())

            def run(program: str) -> float:
                words = [sys.executable, "-c", program, str(client), str(message)]
                subprocess.run(words, check=True, capture_output=True)
                return 1.0

            rows = compare(
                "one evaluation",
                {
                    "handed to the trainer": lambda: run(RELAYED),
                    "model loaded for it": lambda: run(LOADED),
                },
                "messages",
                against="model loaded for it",
                runs=1 if options.quick else 5,
            )
        finally:
            trainer.kill()
            trainer.wait()
    save("deployment", {"messages": rows}, quick=options.quick)


if __name__ == "__main__":
    main()
