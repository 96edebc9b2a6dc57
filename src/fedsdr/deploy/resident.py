"""Clients that live in a worker process of a simulation: one base model for all of them."""

from functools import cache
from pathlib import Path

from fedsdr.deploy.client import ClientSide
from fedsdr.deploy.identity import UNSIGNED
from fedsdr.deploy.site import RUN, load_site
from fedsdr.engines.workbench import Workbench
from fedsdr.progress import silent
from fedsdr.quiet import quiet_libraries
from fedsdr.setting import prepare


@cache
def client_at(folder: Path, number: int) -> ClientSide:
    """The client of a partition; what it keeps lies in `folder`/run/clients/<id>."""
    site = load_site(folder)
    client = list(site.roster)[number]
    own = folder / RUN / "clients" / client
    bench = workbench(folder).of(client)
    return ClientSide(bench, site.recipe, client, own, silent(), UNSIGNED, UNSIGNED)


@cache
def workbench(folder: Path) -> Workbench:
    quiet_libraries()
    return prepare(load_site(folder).recipe).workbench(silent())
