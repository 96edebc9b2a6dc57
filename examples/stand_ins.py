"""Stand-ins for a reader's own model and data, small enough for a minute on one core.

They come from the embedded lab (`fedsdr.lab`): a Llama of two layers that knows a synthetic world,
and two clients, each with facts of its own and a style of writing.
"""

import json
from pathlib import Path

from fedsdr.core.progress import silent_reporter
from fedsdr.core.quiet import quieted_transformers
from fedsdr.lab.pretrain import PretrainOptions, base_model_folder
from fedsdr.lab.world import WorldOptions, build_world

WORLD = WorldOptions(seed=0, entities=16, clients=2)
TRAINING = PretrainOptions(hidden=64, steps=200, batch_size=32)


def write_files(folder: Path) -> Path:
    """Write NAME.jsonl for each client into `folder`; returns the folder of a base model there."""
    world = build_world(WORLD)
    folder.mkdir(parents=True, exist_ok=True)
    for client in world.client_data():
        rows = [
            {"instruction": record.instruction, "response": record.response}
            for record in client.train
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{client.name}.jsonl").write_text(text, encoding="utf-8")
    with quieted_transformers():
        return base_model_folder(world, TRAINING, folder, silent_reporter())
