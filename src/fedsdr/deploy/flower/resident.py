"""Clients that live in a worker process of a simulation: one base model for all of them."""

from functools import cache
from pathlib import Path

from fedsdr.core.layout import CLIENTS_FOLDER
from fedsdr.core.progress import silent_reporter
from fedsdr.core.quiet import quiet_libraries
from fedsdr.deploy.client.operations import ClientSide
from fedsdr.deploy.protocol.signing import UNSIGNED
from fedsdr.deploy.sites.site import RUN, load_site
from fedsdr.federation.workbench import Workbench
from fedsdr.workflows.prepare import prepare_run


@cache
def client_at(folder: Path, number: int) -> ClientSide:
    """The client of a partition; what it keeps lies in `folder`/run/clients/<id>."""
    site = load_site(folder)
    client = list(site.roster)[number]
    own = folder / RUN / CLIENTS_FOLDER / client
    bench = shared_workbench(folder).of(client)
    return ClientSide(bench, site.recipe, client, own, silent_reporter(), UNSIGNED, UNSIGNED)


@cache
def shared_workbench(folder: Path) -> Workbench:
    quiet_libraries()
    return prepare_run(load_site(folder).recipe).workbench(silent_reporter())
