"""`fedsdr deploy init`: everything that one server and its clients need, in a folder for each."""

import math
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fedsdr.core import files
from fedsdr.core.client_names import (
    check_client_name,
    check_distinct_clients,
    client_folder_name,
)
from fedsdr.core.errors import UserError
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.deploy.protocol.signing import new_key
from fedsdr.deploy.server.serve import check_served
from fedsdr.deploy.sites.certificates import write_certificates
from fedsdr.deploy.sites.folder import (
    CLIENT_FILE,
    CLIENT_KEY,
    NODES,
    ROSTER,
    SERVER_KEY,
    SERVER_PUBLIC,
)
from fedsdr.deploy.sites.scripts import program_folder, write_app, write_script
from fedsdr.recipe.load import override_recipe, to_toml
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.prepare import world_of
from fedsdr.workflows.privacy_loss import planned_epsilon

NODE_PORT: Final = 9094  # of the first client's SuperNode, on its own machine's loopback
SERVER: Final = "server"
RELAY: Final = "relay"  # what a client's SuperNode needs, in the client's folder
NODE_KEY: Final = "node.key"
LOOPBACKS: Final = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}
HOST: Final = re.compile(r"[A-Za-z0-9._:-]+")


class Keys(NamedTuple):
    """Public halves: `signs` answers, `connects` to the SuperLink."""

    signs: str
    connects: str


class ServerAddress(NamedTuple):
    """Where clients reach the server, and the public key of what it signs."""

    host: str
    port: int
    public: str


def init_federation(
    recipe: Recipe, out: Path, host: str, port: int, clients: Sequence[str] = ()
) -> list[str]:
    """Write `out`/server and `out`/<client> for each client; returns the clients' ids.

    host: the name or address under which clients reach the server. clients: ids, where the recipe
    does not name clients by its sources. Private keys are drawn here: each client's folder goes to
    that client alone, over a way that can be trusted. Raises `UserError` before anything is
    written.
    """
    ids = client_ids(recipe, clients)
    methods = check_served(recipe, ids)
    if any(method.recipe.privacy.noise_seed is not None for method in methods):
        raise UserError(
            "privacy.noise_seed is for simulations: whoever has the recipe can take the noise off "
            "again; leave it out, and each site draws a secret one"
        )
    if not HOST.fullmatch(host):
        raise UserError(f"--host {host!r} is neither a host's name nor an address")
    if SERVER in (each.lower() for each in ids):
        raise UserError(f"a client cannot be called {SERVER!r}: its folder would be the server's")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and nothing is written over: give another --out")
    out = out.resolve()
    server = out / SERVER
    write_certificates(server / "certificates", host)
    address = ServerAddress(host, port, new_key(server / SERVER_KEY))
    limited = override_recipe(recipe, {"privacy.lifetime_epsilon": lifetime_epsilon(methods)})
    keys = {
        client: write_client(out, own_recipe(limited, client), client, address, NODE_PORT + k)
        for k, client in enumerate(ids)
    }
    write_server(server, recipe, keys, host, port)
    return ids


def client_ids(recipe: Recipe, clients: Sequence[str]) -> list[str]:
    """Those that the recipe's sources name, its world's, or those given."""
    named = list(dict.fromkeys(s.client for s in recipe.data.sources if s.client is not None))
    if world := world_of(recipe):
        named = [each.name for each in world.client_data()]
    if clients and named:
        raise UserError(f"the recipe names its clients, {', '.join(named)}: leave --clients out")
    ids = list(clients) or named
    if not ids:
        raise UserError("the recipe names no client: give --clients hospital,bank,...")
    for each in ids:
        check_client_name(each)
    check_distinct_clients(ids)
    return ids


def write_client(
    out: Path, recipe: Recipe, client: str, server: ServerAddress, node_port: int
) -> Keys:
    """One client's folder, and in it that of its SuperNode; returns the public keys of both.

    recipe: as this client gets it. node_port: where its SuperNode listens, on its own machine.
    They have a key each: who runs the node, and whatever app runs there, cannot sign an answer.
    """
    folder = out / client_folder_name(client)
    files.make_folder(folder, private=True)
    signs = new_key(folder / CLIENT_KEY)
    files.write_text(folder / SERVER_PUBLIC, server.public + "\n")
    files.write_json(folder / CLIENT_FILE, {"id": client})
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
    write_script(folder / "start.sh", "client.sh", {"title": shlex.quote(f"client {client}")})
    write_script(folder / "environment.sh", "environment.sh", {"programs": program_folder()})
    relay = folder / RELAY
    files.make_folder(relay, private=True)
    connects = new_key(relay / NODE_KEY)
    files.write_bytes(relay / "ca.crt", (out / SERVER / "certificates" / "ca.crt").read_bytes())
    where = {
        "host": host_in_url(server.host), "port": server.port, "node_port": node_port,
    }  # fmt: skip
    write_script(relay / "start.sh", "relay.sh", where)
    write_script(relay / "environment.sh", "environment.sh", {"programs": program_folder()})
    return Keys(signs, connects)


def own_recipe(recipe: Recipe, client: str) -> Recipe:
    """The recipe as this client gets it: its own sources, or a place to put one."""
    if recipe.world:
        return recipe
    mine = [s.model_dump(mode="json") for s in recipe.data.sources if s.client == client]
    if not mine:
        mine = [{"path": "data.jsonl", "client": client}]
    return override_recipe(recipe, {"data.sources": mine})


def lifetime_epsilon(methods: Sequence[Method]) -> float | None:
    """A client's limit: the recipe's, or what a whole run of it costs, all its methods.

    So a second run takes the owner's consent. None where a method has no noise to count.
    """
    counted = all(method.recipe.privacy.mode != "none" for method in methods)
    cost = planned_epsilon(methods) if counted else math.inf
    limit = methods[-1].recipe.privacy.lifetime_epsilon
    if limit is not None or not 0 < cost < math.inf:
        return limit
    return math.ceil(100 * cost) / 100


def write_server(
    folder: Path, recipe: Recipe, keys: Mapping[str, Keys], host: str, port: int
) -> None:
    """The server's folder, its roster last."""
    nodes = folder / NODES
    for client, (_, connects) in keys.items():
        files.write_text(nodes / f"{client_folder_name(client)}.pub", connects + "\n")
    files.write_text(folder / "superexec.secret", secrets.token_hex(32), private=True)
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
    write_app(folder, port)
    listen = LOOPBACKS.get(host) or ("::" if ":" in host else "0.0.0.0")
    write_script(folder / "start.sh", "server.sh", {"listen": listen, "port": port})
    write_script(folder / "environment.sh", "environment.sh", {"programs": program_folder()})
    roster = {client: signs for client, (signs, _) in keys.items()}
    files.write_json(folder / ROSTER, {"clients": roster})


def host_in_url(host: str) -> str:
    """An IPv6 address as it stands before a port."""
    return f"[{host}]" if ":" in host else host
