"""Clients that live in a worker process of a simulation: one base model for all of them."""

from functools import cache
from pathlib import Path

from fedsdr.core.client_names import client_folder_name
from fedsdr.core.layout import CLIENTS_FOLDER
from fedsdr.core.progress import silent_reporter
from fedsdr.core.quiet import quiet_libraries
from fedsdr.deploy.client.operations import ClientKeys, ClientSide
from fedsdr.deploy.protocol.signing import UNSIGNED
from fedsdr.deploy.sites.folder import RUN, load_site
from fedsdr.federation.loaded import LoadedRun
from fedsdr.recipe.methods import Method
from fedsdr.workflows.prepare import prepare_run


@cache
def client_at(folder: Path, number: int) -> ClientSide:
    """The client of a partition; what it keeps lies in `folder`/run/clients/<id>."""
    client = list(load_site(folder).roster)[number]
    own = folder / RUN / CLIENTS_FOLDER / client_folder_name(client)
    methods, loaded = shared_run(folder)
    keys = ClientKeys(UNSIGNED, UNSIGNED)
    return ClientSide(loaded.of(client), methods, client, own, keys, silent_reporter())


@cache
def shared_run(folder: Path) -> tuple[tuple[Method, ...], LoadedRun]:
    """The methods of a simulation, and its model with the records of all clients."""
    quiet_libraries()
    prepared = prepare_run(load_site(folder).recipe)
    return prepared.methods, prepared.load(silent_reporter())
