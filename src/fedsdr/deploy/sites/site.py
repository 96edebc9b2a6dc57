"""The folder of a site: what a server or a client needs to take part, and where its run lies.

server:  recipe.toml  roster.json  server.json  server.key  certificates/  app/  run/  status.json
client:  recipe.toml  client.json  client.key  server.pub  private/
         relay/: node.key  ca.crt
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsdr.core import files
from fedsdr.core.client_names import check_distinct_clients
from fedsdr.core.errors import UserError
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.core.progress import Reporter, terminal_reporter
from fedsdr.core.quiet import quiet_libraries
from fedsdr.core.repeats import RepeatHandler
from fedsdr.deploy.client.operations import ClientKeys, ClientSide
from fedsdr.deploy.client.trainer import SOCKET, allowed_users, listen_socket, serve_requests
from fedsdr.deploy.protocol.messages import ClientName
from fedsdr.deploy.protocol.signing import (
    UNSIGNED,
    SignatureVerifier,
    Signer,
    public_line,
    read_private,
    read_public,
)
from fedsdr.deploy.server.admission import Link, ServerConnection
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.prepare import prepare_client
from fedsdr.workflows.run_folder import locked_folder

ROSTER: Final = "roster.json"
CLIENT_FILE: Final = "client.json"
SERVER_FILE: Final = "server.json"
SERVER_KEY, CLIENT_KEY, SERVER_PUBLIC = "server.key", "client.key", "server.pub"
RUN: Final = "run"  # the server's run folder
PRIVATE_FOLDER: Final = "private"  # the client's
STATUS: Final = "status.json"


class _Roster(BaseModel):
    """Clients in their order, each with its public key; in a simulation, which has no keys, their
    names alone, under `unsigned`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    clients: dict[ClientName, str] | None = None
    unsigned: list[ClientName] | None = None


class _Client(BaseModel):
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
    found: _Roster = _read(path, _Roster)
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
    port: int = _read(folder / SERVER_FILE, _Server).port
    return port


def _read(path: Path, model: type[BaseModel]) -> Any:
    try:
        return model.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}") from error


def serve_folder(folder: Path, line: Callable[[float], Link], pause: float = 0.5) -> None:
    """Run, or go on with, the federation of a server's folder.

    line: makes the link, given the seconds that a message may take. How it went is in
    `status.json`, whatever happens.
    """
    quiet_libraries()
    reporter = terminal_reporter()
    with only_one(folder):
        _serve_folder(folder, line, pause, reporter)


def _serve_folder(
    folder: Path, line: Callable[[float], Link], pause: float, reporter: Reporter
) -> None:
    before = files.read_json(folder / STATUS) if (folder / STATUS).exists() else {}
    status = {"began": time.time(), "state": "running", "error": before.get("error", "")}
    files.write_json(folder / STATUS, status)
    try:
        site = load_site(folder)
        patience = site.recipe.deployment
        link = line(max(patience.prepare_seconds, patience.round_seconds))
        connection = ServerConnection(link, site.roster, site.key, pause)
        serve_federation(site.recipe, folder / RUN, connection, reporter)
    except BaseException as error:
        files.write_json(folder / STATUS, status | {"state": "failed", "error": str(error)})
        raise
    files.write_json(folder / STATUS, status | {"state": "finished", "error": ""})


def only_one(folder: Path) -> AbstractContextManager[None]:
    """Two processes at one site would count everything twice: the second is an error."""
    return locked_folder(folder, "use another folder")


def open_client(folder: Path, reporter: Reporter) -> ClientSide:
    """The client of a folder, its model loaded and its records tokenised.

    Raises `UserError` for what is missing or wrong, before the model is loaded.
    """
    client = _read(folder / CLIENT_FILE, _Client).id
    key = read_private(folder / CLIENT_KEY)
    public = folder / SERVER_PUBLIC
    try:
        server = read_public(public.read_text(encoding="utf-8"), str(public))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the server's public key: {error}") from error
    recipe = load_recipe(folder / RECIPE_FILE)
    prepared = prepare_client(recipe, client, reporter)
    mine = prepared.load(reporter).of(client)
    keys = ClientKeys(key, server)
    return ClientSide(mine, prepared.methods, client, folder / PRIVATE_FOLDER, keys, reporter)


def run_trainer(
    folder: Path, reporter: Reporter, socket: Path | None = None, relay_user: str = ""
) -> None:
    """Serve a client's folder until the process ends. All that it writes is its owner's alone.

    socket: where relays ask, in `folder` by default. relay_user: who may ask besides this user.
    """
    os.umask(0o077)
    # Relays open the socket by its whole path, whose length is limited.
    path = (socket or folder / SOCKET).absolute()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[RepeatHandler()],  # whoever may connect could fill the disk with words
    )
    users = allowed_users(relay_user)
    with only_one(folder):
        files.make_folder(folder / PRIVATE_FOLDER, private=True)
        files.recover_folder(folder / PRIVATE_FOLDER)
        server = listen_socket(path, users)
        try:
            client = open_client(folder, reporter)
            reporter.say(f"client {client.client} is ready: {path}")
            try:
                serve_requests(server, client, users, client.longest_request())
            finally:
                client.audit.write_rest()
        finally:
            server.close()
            path.unlink(missing_ok=True)
