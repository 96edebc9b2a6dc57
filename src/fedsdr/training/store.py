"""A client's store: its state, versioned by round, readable by its owner only.

A version is written when the client has finished round t, before the server commits round t.
If the run dies in between, the resumed run loads the version of the last committed round and
does the round again; later versions are then overwritten with the same bytes.
"""

import re
from pathlib import Path

from fedsdr.algorithms.contract import ClientState
from fedsdr.core import files
from fedsdr.core.adapters import Adapter, Private, unwrap_private
from fedsdr.core.client_names import client_folder, client_folder_name

PRIVATE, MEMORY = "private", "memory"
STATE_VERSION = re.compile(r"state-(\d{6})\.safetensors")


class ClientStore:
    """The folder `clients/` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def client_folder(self, client: str) -> Path:
        return client_folder(self.folder, client)

    def load(self, client: str, committed: int) -> ClientState:
        """The client's state after the latest round up to `committed` that it took part in."""
        versions = [round for round in self._versions(client) if round <= committed]
        if not versions:
            return ClientState()
        tensors, _ = files.read_tensors(self._path(client, max(versions)))
        groups: dict[tuple[str, str], Adapter] = {}
        for place, tensor in tensors.items():
            kind, name, key = place.split("|", 2)
            groups.setdefault((kind, name), {})[key] = tensor
        return ClientState(
            private={name: Private(a) for (kind, name), a in groups.items() if kind == PRIVATE},
            memory={name: a for (kind, name), a in groups.items() if kind == MEMORY},
        )

    def save(self, client: str, round: int, state: ClientState) -> None:
        """Write the state after `round`; the one before stays until `prune`."""
        groups = {(PRIVATE, name): unwrap_private(each) for name, each in state.private.items()}
        groups |= {(MEMORY, name): each for name, each in state.memory.items()}
        tensors = {
            f"{kind}|{name}|{key}": tensor
            for (kind, name), adapter in groups.items()
            for key, tensor in adapter.items()
        }
        if not tensors:
            return
        path = self._path(client, round)
        files.write_tensors(path, tensors, private=True)

    def prune(self, client: str, committed: int) -> None:
        """Drop the versions that no resumed run can ask for: all but the latest committed."""
        older = [round for round in self._versions(client) if round <= committed]
        for round in older[:-1]:
            self._path(client, round).unlink()

    def discard(self, client: str, after: int) -> None:
        """Drop the versions of rounds after `after`, which were not committed."""
        for round in self._versions(client):
            if round > after:
                self._path(client, round).unlink()

    def _versions(self, client: str) -> list[int]:
        folder = self.folder / client_folder_name(client)
        matches = (STATE_VERSION.fullmatch(path.name) for path in folder.glob("state-*"))
        return sorted(int(match[1]) for match in matches if match)

    def _path(self, client: str, round: int) -> Path:
        return self.client_folder(client) / f"state-{round:06d}.safetensors"
