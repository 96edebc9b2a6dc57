"""A client's own store: its private adapters, versioned by round, readable by its owner alone.

A version is written when the client has finished round t, before the server commits round t.
If the run dies in between, the resumed run loads the version of the last committed round and
does the round again; later versions are then overwritten with the same bytes.
"""

import re
from pathlib import Path

from fedsdr import files
from fedsdr.adapters import Private, unwrap
from fedsdr.algorithms.contract import ClientState

VERSION = re.compile(r"state-(\d{6})\.safetensors")


class ClientStore:
    """The folder `clients/` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def client_folder(self, client: str) -> Path:
        folder = self.folder / client
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def load(self, client: str, committed: int) -> ClientState:
        """The client's state after the latest round up to `committed` that it took part in."""
        versions = [round for round in self._versions(client) if round <= committed]
        if not versions:
            return ClientState()
        tensors, _ = files.read_tensors(self._path(client, max(versions)))
        names = {key.partition("|")[0] for key in tensors}
        return ClientState(
            {
                name: Private(
                    {
                        key.partition("|")[2]: tensor
                        for key, tensor in tensors.items()
                        if key.startswith(name + "|")
                    }
                )
                for name in names
            }
        )

    def save(self, client: str, round: int, state: ClientState) -> None:
        """Write the state after `round`; the one before stays until `prune`."""
        if not state.private:
            return
        tensors = {
            f"{name}|{key}": tensor
            for name, private in state.private.items()
            for key, tensor in unwrap(private).items()
        }
        path = self._path(client, round)
        files.write_tensors(path, tensors, private=True)

    def prune(self, client: str, committed: int) -> None:
        """Drop the versions that no resumed run can ask for: all but the latest committed."""
        older = [round for round in self._versions(client) if round <= committed]
        for round in older[:-1]:
            self._path(client, round).unlink()

    def _versions(self, client: str) -> list[int]:
        folder = self.folder / client
        matches = (VERSION.fullmatch(path.name) for path in folder.glob("state-*"))
        return sorted(int(match[1]) for match in matches if match)

    def _path(self, client: str, round: int) -> Path:
        return self.client_folder(client) / f"state-{round:06d}.safetensors"
