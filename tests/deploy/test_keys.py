"""Where keys are in use, a key that is missing, empty or malformed is an error, whichever it is.

Without keys runs a simulation alone, whose folder says so.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client.operations import ClientKeys, ClientSide
from fedsdr.deploy.protocol.signing import UNSIGNED, Unsigned, new_key, read_private
from fedsdr.deploy.server.admission import Admission, AdmittedRun, ServerConnection
from fedsdr.deploy.sites.folder import (
    CLIENT_KEY,
    ROSTER,
    SERVER_KEY,
    SERVER_PUBLIC,
    load_site,
    roster_clients,
)
from fedsdr.deploy.sites.init import init_federation
from fedsdr.deploy.sites.site import open_client
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.methods import resolve_methods
from support import tiny_recipe, toy_clients
from support.message_lines import Loopback

WRONG: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "cut": b"ecdsa-sha2-nistp384 AAAA",
    "another kind": b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0vcr0gQdSdN9eQX0qXGAhNfAwpkr0uBqbwDXbu",
    "null": b"null",
    "no text": b"\xff\xfe\0",
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    init_federation(
        load_recipe(tiny_recipe.write_recipe(folder)), folder / "fed", "localhost", 8000
    )
    return folder / "fed"


@pytest.fixture
def server(federation: Path) -> Path:
    return federation / "server"


def changed(path: Path, data: bytes | None, load: Callable[[], Any]) -> str:
    """What `load` says to a file with other content, or none; the file is as before then."""
    before = path.read_bytes()
    try:
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        with pytest.raises(UserError) as raised:
            load()
    finally:
        path.write_bytes(before)
        path.chmod(0o600)
    return str(raised.value)


def roster(server: Path, **keys: Any) -> bytes:
    clients = files.read_json(server / ROSTER)["clients"]
    return json.dumps({"clients": clients | keys}).encode()


@pytest.mark.parametrize("kind", [*WRONG, "missing"])
def test_no_key_of_a_site_may_be_missing_or_malformed(federation, server, kind):
    data = WRONG.get(kind)
    client = federation / "ben"
    assert "server.key" in changed(server / SERVER_KEY, data, lambda: load_site(server))
    for name in (CLIENT_KEY, SERVER_PUBLIC):
        told = changed(client / name, data, lambda: open_client(client, silent_reporter()))
        assert name in told or "public key" in told
    load_site(server)


@pytest.mark.parametrize("line", ["", " ", "x", "null", None, 7, [], *[
    each.decode() for each in WRONG.values() if each.isascii()
]])  # fmt: skip
def test_no_client_of_a_roster_may_be_without_a_key(server, line):
    told = changed(server / ROSTER, roster(server, ben=line), lambda: load_site(server))
    assert ROSTER in told
    assert "ben" in told


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({}, 'either "clients"'),
        ({"clients": {}, "unsigned": []}, 'either "clients"'),
        ({"unsigned": ["anna"]}, "a simulation has no keys"),
        ({"clients": ["anna"]}, "clients"),
        ({"unsigned": {"anna": ""}}, "unsigned"),
    ],
)
def test_a_roster_has_keys_or_says_that_there_are_none(server, content, named):
    told = changed(server / ROSTER, json.dumps(content).encode(), lambda: load_site(server))
    assert named in told


def test_no_two_clients_may_have_one_key(server):
    anna = files.read_json(server / ROSTER)["clients"]["anna"]
    told = changed(server / ROSTER, roster(server, ben=anna), lambda: load_site(server))
    assert "clients 'anna' and 'ben' have the same key" in told


def test_keys_cannot_be_taken_away_from_a_federation(server):
    """Not by deleting them all: what is left says that there must be some."""
    told = changed(server / SERVER_KEY, None, lambda: load_site(server))
    assert "cannot read the private key" in told
    assert not any(isinstance(key, Unsigned) for key in load_site(server).roster.values())


def test_a_simulation_says_that_it_has_no_keys(tmp_path, server):
    files.write_json(tmp_path / ROSTER, {"unsigned": ["anna", "ben"]})
    (tmp_path / "recipe.toml").write_bytes((server / "recipe.toml").read_bytes())
    site = load_site(tmp_path)
    assert site.roster == {"anna": UNSIGNED, "ben": UNSIGNED}
    assert site.key is UNSIGNED
    assert roster_clients(tmp_path) == ["anna", "ben"]
    assert roster_clients(server) == [*toy_clients.CLIENTS]


def test_one_end_with_keys_and_one_without_is_a_mistake_of_the_program(tmp_path, server):
    new_key(tmp_path / "k")
    key, recipe = read_private(tmp_path / "k"), load_recipe(server / "recipe.toml")
    for pair in ((key, UNSIGNED), (UNSIGNED, key.public_key())):
        with pytest.raises(AssertionError):
            ClientSide(
                None, resolve_methods(recipe), "anna", tmp_path / "c", ClientKeys(*pair),
                silent_reporter(),
            )  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(AssertionError):
            Admission(
                ServerConnection(Loopback({}), {"anna": pair[1]}, pair[0]),
                recipe,
                AdmittedRun("r", 0),
                silent_reporter(),
            )
    assert not (tmp_path / "c").exists()
