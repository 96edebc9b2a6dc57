"""What must stay where it is: keys, seeds of noise, the texts of records.

A federation of three clients with keys runs to its end, and everything that it wrote, printed,
logged or sent is searched for them.
"""

import base64
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tomli_w

from fedsdr.algorithms.contract import Personal
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import NOISE_FILE, RECIPE_FILE
from fedsdr.deploy.protocol.egress import LOG
from fedsdr.deploy.protocol.signing import PrivateKey, new_key, public_line, read_private
from fedsdr.deploy.sites.folder import ROSTER, SERVER_KEY, STATUS, load_site
from fedsdr.deploy.sites.site import serve_folder
from fedsdr.federation.in_process import InProcessEngine
from support import tiny_recipe, toy_clients
from support.message_lines import Loopback, client_sides, loopback

CANARIES = {client: f"canary{client}sings" for client in toy_clients.CLIENTS}


class Federation(NamedTuple):
    """server: its folder. sides: the clients'. printed: all that was logged or printed."""

    server: Path
    sides: Path
    line: Loopback
    keys: dict[str, PrivateKey]
    printed: str


def federation(folder: Path, capfd: pytest.CaptureFixture[str]) -> Federation:
    """Run one, local differential privacy and all."""
    privacy = {"mode": "local", "noise_multiplier": 0.1}
    patience = {"wait_seconds": 5.0, "round_seconds": 60.0, "prepare_seconds": 60.0}
    recipe_file = tiny_recipe.write_recipe(folder, privacy=privacy, deployment=patience)
    for client, word in CANARIES.items():
        rows = [
            {name: f"{word} {text} {word}" for name, text in row.items()}
            for row in tiny_recipe.client_rows(1)
        ]
        tiny_recipe.write_rows(folder / "data" / f"{client}.jsonl", rows)
    server = folder / "server"
    for name in toy_clients.CLIENTS:
        new_key(folder / "keys" / name)
    new_key(server / SERVER_KEY)
    keys = {name: read_private(folder / "keys" / name) for name in toy_clients.CLIENTS}
    keys["server"] = read_private(server / SERVER_KEY)
    (server / RECIPE_FILE).write_text(recipe_file.read_text())
    roster = {name: public_line(keys[name].public_key()) for name in toy_clients.CLIENTS}
    files.write_json(server / ROSTER, {"clients": roster})
    line = loopback(client_sides(recipe_file, folder / "sides", keys, keys["server"].public_key()))
    told, handler = listening()
    try:
        serve_folder(server, lambda ttl: line, pause=0)
    finally:
        logging.getLogger().removeHandler(handler)
    assert files.read_json(server / STATUS)["state"] == "finished"
    return Federation(
        server, folder / "sides", line, keys, told.getvalue() + "".join(capfd.readouterr())
    )


def listening() -> tuple[io.StringIO, logging.Handler]:
    """All of the package's logs at every level."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    logging.getLogger().addHandler(handler)
    logging.getLogger("fedsdr").setLevel(logging.DEBUG)
    return told, handler


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    yield
    logging.getLogger("fedsdr").setLevel(logging.NOTSET)


def key_material(key: PrivateKey) -> list[bytes]:
    """The secret number in the forms in which it could be met."""
    number = key.private_numbers().private_value
    raw = number.to_bytes(48, "big")
    # Base64 depends on where in a longer text the bytes begin; the middle of each is found.
    coded = [base64.b64encode(bytes(shift) + raw)[4:-4] for shift in range(3)]
    return [raw, raw[::-1], raw.hex().encode(), str(number).encode(), *coded]


def contents(folder: Path, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    return {str(path): path.read_bytes() for path in paths}


def sent(line: Loopback) -> dict[str, bytes]:
    pairs = [pair for traffic in line.traffic.values() for pair in traffic]
    return {f"message {k}": b"".join(pair) for k, pair in enumerate(pairs)}


def where(secrets: list[bytes], places: dict[str, bytes]) -> list[str]:
    return [name for name, data in places.items() if any(secret in data for secret in secrets)]


def test_a_finished_federation_has_told_no_secret(tmp_path, capfd):
    done = federation(tmp_path, capfd)
    printed = {"printed": done.printed.encode()}
    audits = {str(path): path.read_bytes() for path in done.sides.rglob(LOG)}
    assert len(audits) == len(toy_clients.CLIENTS)
    public = contents(done.server, without=(SERVER_KEY, NOISE_FILE)) | sent(done.line) | printed
    public |= audits
    assert len(public) > 30
    for key in done.keys.values():
        places = public | contents(done.sides) | contents(tmp_path / "cache")
        assert where(key_material(key), places) == []
    words = [word.encode() for word in CANARIES.values()]
    assert where(words, public) == []
    seeds = [*done.sides.rglob(NOISE_FILE), *done.server.rglob(NOISE_FILE)]
    assert len(seeds) == len(toy_clients.CLIENTS) + 1
    for path in seeds:
        assert path.stat().st_mode & 0o777 == 0o600
        secret = bytes.fromhex(files.read_json(path))
        assert len(secret) == 32
        forms = [secret, secret[::-1], secret.hex().encode(), str(int(secret.hex(), 16)).encode()]
        assert where(forms, public) == []


def test_what_is_searched_for_would_be_found(tmp_path):
    new_key(tmp_path / "k")
    [key] = [read_private(tmp_path / "k")]
    assert where(key_material(key), {"the key": pem_body(tmp_path / "k")}) == ["the key"]
    for form in key_material(key):
        assert where(key_material(key), {"here": b"x" + form + b"y", "not here": b"x"}) == ["here"]


def pem_body(path: Path) -> bytes:
    """An OpenSSH private key without its frame and line breaks."""
    return b"".join(path.read_bytes().splitlines()[1:-1])


def test_an_error_that_quotes_a_record_stays_with_its_client(tmp_path, capfd, monkeypatch):
    def fail(engine: InProcessEngine, client: str, own: Personal) -> None:
        if client == "ben":
            raise ValueError(f"cannot tokenise {CANARIES[client]!r}")
        return write(engine, client, own)

    write = InProcessEngine.write_personal
    monkeypatch.setattr(InProcessEngine, "write_personal", fail)
    done = federation(tmp_path, capfd)
    word = [CANARIES["ben"].encode()]
    assert CANARIES["ben"] in done.printed  # in the client's own log
    places = contents(done.server) | sent(done.line)
    places |= {str(path): path.read_bytes() for path in done.sides.rglob(LOG)}
    assert where(word, places) == []
    assert where([b"failed for a reason that its own log tells"], places)


def test_errors_about_keys_do_not_quote_them(tmp_path):
    new_key(tmp_path / "k")
    text = (tmp_path / "k").read_text()
    lines = text.splitlines()
    secrets = [line for line in lines[1:-1] if len(line) > 20]
    said = []
    for broken in (text[:-60], text.replace(lines[0], ""), "\n".join(reversed(lines))):
        (tmp_path / "k").write_text(broken)
        (tmp_path / "k").chmod(0o600)
        with pytest.raises(UserError) as caught:
            read_private(tmp_path / "k")
        said.append(str(caught.value))
    (tmp_path / RECIPE_FILE).write_text(tomli_w.dumps({"model": {"path": "lab"}}))
    for value in (text, [text]):  # the private half where the public one should be
        files.write_json(tmp_path / ROSTER, {"clients": {"anna": value}})
        with pytest.raises(UserError) as caught:
            load_site(tmp_path)
        said.append(str(caught.value))
    assert not [secret for secret in secrets if secret in " ".join(said)]
