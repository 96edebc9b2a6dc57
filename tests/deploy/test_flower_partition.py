"""A client whose network is cut: left out while it lasts, and back once it is mended."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsdr.core import files
from fedsdr.deploy.flower.simulation import free_port
from support import tiny_recipe
from support.flower_processes import Cable, Scripts, federation, fedsdr, give_free_ports
from support.processes import wait_until

pytestmark = [pytest.mark.slow(minutes=4), pytest.mark.timeout(1200)]
CLIENTS = ("anna", "ben")
PATIENCE = {
    "min_clients": 1, "wait_seconds": 300.0, "round_seconds": 40.0, "prepare_seconds": 300.0,
}  # fmt: skip


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    with federation(tmp_path) as scripts:
        yield scripts


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable(free_port())
    yield cable
    cable.close()


def rows(server: Path) -> list[dict]:
    path = server / "run" / "metrics.jsonl"
    return [row for row in files.read_json_lines(path) if row["round"]] if path.exists() else []


def test_a_client_that_is_cut_off_is_left_out_and_comes_back(
    tmp_path, monkeypatch, scripts: Scripts, cable: Cable
):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    sources = [{"path": str(tmp_path / "data" / f"{c}.jsonl"), "client": c} for c in CLIENTS]
    recipe = tiny_recipe.write_recipe(
        tmp_path,
        federation={"rounds": 9, "targets": "raw"},
        evaluate={"every": 0, "personal": False},
        data={"sources": sources},
        deployment=PATIENCE,
    )
    out, port = tmp_path / "federation", cable.target
    fedsdr(
        "deploy", "init", str(recipe), "--out", str(out), "--host", "localhost", "--port", str(port)
    )
    server = out / "server"
    give_free_ports([out / client for client in CLIENTS])
    lead_through(cable, out / "ben" / "relay" / "start.sh")
    for site in ("server", *CLIENTS):
        scripts.start(out / site / "start.sh")
    log = server / "logs" / "superlink.log"
    wait_until("the SuperLink is up", 120, lambda: log.exists() and "running on" in log.read_text())
    fedsdr("deploy", "register", str(server))
    with scripts.submitted(server) as submitted:
        wait_until("both take part", 500, lambda: any(len(r["clients"]) == 2 for r in rows(server)))
        cable.cut()
        wait_until("ben is left out", 400, lambda: any("absent" in r for r in rows(server)))
        cable.mend()
        submitted.wait(700)
    taken = [row["clients"] for row in rows(server)]
    assert len(taken) == 9
    assert ["anna"] in taken
    assert all("anna" in each for each in taken)
    left_out = next(row for row in rows(server) if "absent" in row)
    assert "no answer within 40 s" in left_out["absent"]["ben"]
    back = taken.index(["anna"]) + 1
    assert ["anna", "ben"] in taken[back:]


def lead_through(cable: Cable, script: Path) -> None:
    """Have a client's node reach the server through a cable."""
    text = script.read_text()
    led = re.sub(r"--superlink localhost:\d+", f"--superlink localhost:{cable.port}", text)
    assert led != text
    script.write_text(led)
