"""Two patterns of other systems, re-created on today's libraries: what is rebuilt, and when."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from fedsdr.model.base import LoadedModel
from fedsdr.recipe.sections.recipe import Recipe

IGNORED = -100  # the label of a token that is not learnt


def each_client(
    recipe: Recipe, base: LoadedModel, clients: Sequence[Any], folder: Path
) -> Callable[[], float]:
    """OpenFedLLM: one model; dataset tokens, optimiser and trainer anew for each client."""
    model = wrapped(recipe, base.path)
    shared = adapter_of(model)

    def round() -> float:
        updates = []
        for client in clients:
            set_peft_model_state_dict(model, shared)
            train(recipe, model, tokens(recipe, base, client), folder)
            updates.append(adapter_of(model))
        shared.update(mean(updates))
        return len(clients)

    return round


def each_message(
    recipe: Recipe, base: LoadedModel, clients: Sequence[Any], folder: Path
) -> Callable[[], float]:
    """Flower's example: the base model too is loaded for every message to a client."""
    shared = adapter_of(wrapped(recipe, base.path))

    def round() -> float:
        updates = []
        for client in clients:
            AutoTokenizer.from_pretrained(base.path)
            model = wrapped(recipe, base.path)
            set_peft_model_state_dict(model, shared)
            train(recipe, model, tokens(recipe, base, client), folder)
            updates.append(adapter_of(model))
        shared.update(mean(updates))
        return len(clients)

    return round


def wrapped(recipe: Recipe, path: str) -> Any:
    lora = LoraConfig(
        r=int(recipe.lora.rank), lora_alpha=int(recipe.lora.alpha), target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), lora)


def adapter_of(model: Any) -> dict[str, Any]:
    return {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}


def mean(updates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: torch.stack([each[key] for each in updates]).mean(0) for key in updates[0]}


def tokens(recipe: Recipe, base: LoadedModel, client: Any) -> Dataset:
    rows = []
    for record in client.train:
        example = base.chat.prompt_ids(record.prompt), base.chat.response_ids(record.response)
        ids = [*example[0], *example[1]][: recipe.model.max_length]
        labels = [IGNORED] * len(example[0]) + example[1]
        rows.append({"input_ids": ids, "labels": labels[: recipe.model.max_length]})
    return Dataset.from_list(rows)


def train(recipe: Recipe, model: Any, data: Dataset, folder: Path) -> None:
    options = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=recipe.local.rectify_steps,
        per_device_train_batch_size=recipe.local.batch_size, learning_rate=recipe.local.rectify_lr,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model, options, train_dataset=data, data_collator=padded).train()


def padded(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    longest = max(len(row["input_ids"]) for row in rows)

    def fill(key: str, value: int) -> Any:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    ids, labels = fill("input_ids", 0), fill("labels", IGNORED)
    sizes = torch.tensor([[len(row["input_ids"])] for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.arange(longest) < sizes}
