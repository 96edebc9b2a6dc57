"""The folder of a site: what a server or a client needs to take part, and where its run lies.

server:  recipe.toml  roster.json  server.json  server.key  certificates/  app/  run/  status.json
client:  recipe.toml  client.json  client.key  server.pub  private/
         relay/: node.key  ca.crt
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsdr.core import files
from fedsdr.core.client_names import check_distinct_clients
from fedsdr.core.errors import UserError
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.deploy.protocol.signing import (
    UNSIGNED,
    SignatureVerifier,
    Signer,
    public_line,
    read_private,
    read_public,
)
from fedsdr.deploy.protocol.wire import ClientName
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.run_folder import locked_folder

ROSTER: Final = "roster.json"
CLIENT_FILE: Final = "client.json"
SERVER_FILE: Final = "server.json"
SERVER_KEY, CLIENT_KEY, SERVER_PUBLIC = "server.key", "client.key", "server.pub"
RUN: Final = "run"  # the server's run folder
NODES: Final = "nodes"  # public keys of the clients' nodes, in the server's folder
PRIVATE_FOLDER: Final = "private"  # the client's
STATUS: Final = "status.json"


class _Roster(BaseModel):
    """Clients in their order, each with its public key; in a simulation, which has no keys, their
    names alone, under `unsigned`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    clients: dict[ClientName, str] | None = None
    unsigned: list[ClientName] | None = None


class SiteClient(BaseModel):
    """Who a client's folder is of."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: ClientName


class _Server(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    port: Annotated[int, Field(gt=0, lt=65536)]


@dataclass(frozen=True)
class Site:
    """A server's folder, read."""

    folder: Path
    recipe: Recipe
    roster: Mapping[str, SignatureVerifier]
    key: Signer


def load_site(folder: Path) -> Site:
    """Raises `UserError` for what is missing or wrong, a key above all: there are keys of the
    server and of every client, or it is a simulation's folder, which says so and has none."""
    path, own = folder / ROSTER, folder / SERVER_KEY
    found: _Roster = read_site_file(path, _Roster)
    if (found.clients is None) == (found.unsigned is None):
        raise UserError(f'{path} must have either "clients", with a key each, or "unsigned"')
    check_distinct_clients(found.clients or found.unsigned or ())
    recipe = load_recipe(folder / RECIPE_FILE)
    if found.unsigned is not None:
        if own.exists():
            raise UserError(f'{path} says "unsigned", and there is {own}: a simulation has no keys')
        return Site(folder, recipe, dict.fromkeys(found.unsigned, UNSIGNED), UNSIGNED)
    assert found.clients is not None
    roster = {c: read_public(line, f"{path}: client {c!r}") for c, line in found.clients.items()}
    first: dict[str, str] = {}
    for client, key in roster.items():
        if (other := first.setdefault(public_line(key), client)) != client:
            raise UserError(f"{path}: clients {other!r} and {client!r} have the same key")
    return Site(folder, recipe, roster, read_private(own))


def roster_clients(folder: Path) -> list[str]:
    """The ids of the clients of a server's folder."""
    found = files.read_json(folder / ROSTER)
    return [*(found.get("clients") or found["unsigned"])]


def server_port(folder: Path) -> int:
    """Where the SuperLink of a server's folder listens."""
    port: int = read_site_file(folder / SERVER_FILE, _Server).port
    return port


def read_site_file(path: Path, model: type[BaseModel]) -> Any:
    """The content of a JSON file as `model`; raises `UserError` for what it does not allow."""
    try:
        return model.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}") from error


def only_one(folder: Path) -> AbstractContextManager[None]:
    """Two processes at one site would count everything twice: the second is an error."""
    return locked_folder(folder, "use another folder")
