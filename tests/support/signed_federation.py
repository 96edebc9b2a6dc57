"""Three clients with keys, all in this process, and servers that come and go."""

from pathlib import Path
from typing import Any

from fedsdr.core import files
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client.operations import ClientSide
from fedsdr.deploy.protocol.signing import (
    new_key,
    read_private,
    read_public,
)
from fedsdr.deploy.server.admission import ServerConnection
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.recipe.load import load_recipe, override_recipe
from support import tiny_recipe, toy_clients
from support.message_lines import Loopback, client_sides

PATIENCE = {"wait_seconds": 10.0, "round_seconds": 1.5, "prepare_seconds": 20.0}
SOON = {"deployment.reconnect_seconds": 0.05}
CHECKPOINT = "checkpoint.safetensors"


class ServerDeath(BaseException):
    """The server dies here."""


class Federation:
    """Three clients with keys, and servers that come and go."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        federation = {"targets": "raw", "rounds": 3, **sections.pop("federation", {})}
        self.recipe_file = tiny_recipe.write_recipe(
            folder,
            federation=federation,
            deployment={**PATIENCE, **sections.pop("deployment", {})},
            evaluate={"personal": False, "every": 0, **sections.pop("evaluate", {})},
            **sections,
        )
        self.folder, self.recipe = folder, load_recipe(self.recipe_file)
        names = [*toy_clients.CLIENTS, "server", "stranger"]
        self.public = {name: read_public(new_key(folder / f"{name}.key"), name) for name in names}
        self.keys = {name: read_private(folder / f"{name}.key") for name in names}
        self.roster = {client: self.public[client] for client in toy_clients.CLIENTS}

    def clients(self, where: str = "sides") -> dict[str, ClientSide]:
        """The clients anew, as after a restart: what they know is on their disks."""
        return client_sides(
            self.recipe_file, self.folder / "of" / where, self.keys, self.public["server"]
        )

    def serve(self, line: Loopback, out: str = "out", **changes: Any) -> Path:
        recipe = override_recipe(self.recipe, changes)
        connection = ServerConnection(line, self.roster, self.keys["server"], pause=0.001)
        serve_federation(recipe, self.folder / out, connection, silent_reporter())
        return self.folder / out


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for row in files.read_json_lines(out / "metrics.jsonl") if row["round"]]


def bits(out: Path) -> bytes:
    return (out / CHECKPOINT).read_bytes()
