"""The processes of a federation's sites: a server's run, and a client's trainer."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.core.progress import Reporter, terminal_reporter
from fedsdr.core.quiet import quiet_libraries
from fedsdr.core.repeats import RepeatHandler
from fedsdr.deploy.client.operations import ClientKeys, ClientSide
from fedsdr.deploy.client.trainer import SOCKET, allowed_users, listen_socket, serve_requests
from fedsdr.deploy.protocol.signing import read_private, read_public
from fedsdr.deploy.server.admission import Link, ServerConnection
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.deploy.sites.folder import (
    CLIENT_FILE,
    CLIENT_KEY,
    PRIVATE_FOLDER,
    RUN,
    SERVER_PUBLIC,
    STATUS,
    SiteClient,
    load_site,
    only_one,
    read_site_file,
)
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.prepare import prepare_client


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


def open_client(folder: Path, reporter: Reporter) -> ClientSide:
    """The client of a folder, its model loaded and its records tokenised.

    Raises `UserError` for what is missing or wrong, before the model is loaded.
    """
    client = read_site_file(folder / CLIENT_FILE, SiteClient).id
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
