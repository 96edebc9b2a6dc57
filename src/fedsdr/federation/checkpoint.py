"""The server's checkpoint: one file, renamed into place, holding all that a resumed run needs.

It is the commit point of a round. Client states of that round are on disk before it (see
`fedsdr.training.store`); the metrics line is written before it too and dropped on resume if the
checkpoint did not follow.
"""

from pathlib import Path

import torch

from fedsdr.algorithms.contract import ServerState
from fedsdr.core import files
from fedsdr.core.adapters import Adapter
from fedsdr.core.layout import CHECKPOINT_FILE

ADAPTER, POPULATION = "adapter", "population"


def save_checkpoint(folder: Path, round: int, state: ServerState) -> None:
    """Commit `round` rounds as done."""
    groups = {ADAPTER: state.adapter, **{f"memory:{name}": a for name, a in state.memory.items()}}
    tensors = {f"{group}|{key}": t for group, a in groups.items() for key, t in a.items()}
    tensors[f"{POPULATION}|"] = torch.tensor(state.population, dtype=torch.float64)
    files.write_tensors(folder / CHECKPOINT_FILE, tensors, {"round": str(round)})


def load_checkpoint(folder: Path) -> tuple[int, ServerState] | None:
    """The number of committed rounds and the state after them; None before the first."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    tensors, metadata = files.read_tensors(path)
    groups: dict[str, Adapter] = {}
    for name, tensor in tensors.items():
        group, _, key = name.partition("|")
        groups.setdefault(group, {})[key] = tensor
    adapter = groups.pop(ADAPTER)
    population = groups.pop(POPULATION, {"": torch.zeros(())})[""]  # which older ones do not have
    memory = {name.removeprefix("memory:"): a for name, a in groups.items()}
    return int(metadata["round"]), ServerState(adapter, memory, population=float(population))
