"""Changes to a model folder, each of which makes another model of it under the same path."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

TEMPLATE = "chat_template.jinja"


def weight(folder: Path) -> None:
    """One value of one tensor."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0] += 1.0
    save_file(tensors, path, {"format": "pt"})


def rope(folder: Path) -> None:
    """A number of the configuration that no tensor depends on."""
    edit(folder / "config.json", lambda c: c["rope_parameters"].update(rope_theta=20.0))


def vocabulary(folder: Path) -> None:
    """Two words swap their ids."""

    def swap(content: Any) -> None:
        words = content["model"]["vocab"]
        words["cat"], words["dog"] = words["dog"], words["cat"]

    edit(folder / "tokenizer.json", swap)


def template(folder: Path) -> None:
    """A word of the chat template."""
    path = folder / TEMPLATE
    path.write_text(path.read_text().replace("'<", "'the <"))


def end_of_turn(folder: Path) -> None:
    """The token that ends an answer; prompts of one turn stay as they were."""
    path = folder / TEMPLATE
    path.write_text(path.read_text().replace("<eos>", "<pad>"))


def generation(folder: Path) -> None:
    """Where `generate` stops by itself."""
    edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=[2, 7]))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


# The parts of the model's identity that each changes.
CHANGES: dict[Callable[[Path], None], list[str]] = {
    weight: ["weights"],
    rope: ["configuration"],
    vocabulary: ["tokenizer"],
    template: ["chat template"],
    end_of_turn: ["chat template", "generation settings"],
    generation: ["generation settings"],
}
