"""What tests compare of the folders of runs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedsdr.core.adapters import Adapter
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.prepare import prepare_run

BASELINES = ["base", "fedavg", "fedsd", "local", "central"]
WEIGHTS = "adapter_model.safetensors"


def read_weights(folder: Path) -> Adapter:
    return load_file(folder / WEIGHTS)


def same_weights(a: Path, b: Path) -> bool:
    left, right = read_weights(a), read_weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def timeless_log(folder: Path) -> list[Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{**row, "train": {**row.get("train", {}), "seconds": 0}} for row in rows]


def folder_contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def held_out_loss(model: Any, tokenizer: Any, recipe: Recipe, clients: list[str]) -> float:
    """-log p per response token, record by record, with nothing but transformers."""
    total, count = 0.0, 0
    for client in prepare_run(recipe).clients:
        for record in client.held_out if client.name in clients else ():
            prompt = tokenizer(f"<user> {record.instruction} <assistant>")["input_ids"]
            answer = tokenizer(f"{record.response} <eos>")["input_ids"]
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                log_p = log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
            for position, token in enumerate(answer, start=len(prompt)):
                total -= float(log_p[position - 1, token])
            count += len(answer)
    return total / count


def base_model(home: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(home / "model").eval()
    return model, AutoTokenizer.from_pretrained(home / "model")


def merge_adapter(model: Any, adapter: Adapter, scaling: float) -> None:
    """W0 + (alpha/r) B A, written into the model's own weights."""
    for key, a in adapter.items():
        if ".lora_A." in key:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = adapter[key.replace("lora_A", "lora_B")]
            with torch.no_grad():
                model.get_submodule(path).weight += scaling * (b @ a)
