"""A client whose network is cut (real network namespaces): left out, and back once mended.

Needs the right to make namespaces (root on Linux), and is skipped elsewhere.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from fedsdr import files
from fedsdr.deploy.simulation import free_port
from test_flower import FEDSDR, Scripts, fedsdr, give_free_ports, wait_until

HERE, THERE = "10.213.77.1", "10.213.77.2"
SPACE, LINK = "fedsdr-test", "fedsdr-t"
PATIENCE = {
    "min_clients": 1, "wait_seconds": 300.0, "round_seconds": 45.0, "prepare_seconds": 300.0,
}  # fmt: skip


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def namespaces() -> bool:
    """Whether this process may make one."""
    if shutil.which("ip") is None:
        return False
    name = f"{SPACE}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return made.returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not namespaces(), reason="needs the right to make network namespaces"),
]


@pytest.fixture
def network() -> Iterator[None]:
    """A namespace whose only way out is a cable to this machine."""
    clear()
    ip("netns", "add", SPACE)
    try:
        ip("link", "add", f"{LINK}0", "type", "veth", "peer", "name", f"{LINK}1")
        ip("link", "set", f"{LINK}1", "netns", SPACE)
        ip("addr", "add", f"{HERE}/24", "dev", f"{LINK}0")
        ip("link", "set", f"{LINK}0", "up")
        for words in (
            ("addr", "add", f"{THERE}/24", "dev", f"{LINK}1"),
            ("link", "set", f"{LINK}1", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", SPACE, *words)
        yield
    finally:
        clear()


def clear() -> None:
    for words in (("link", "delete", f"{LINK}0"), ("netns", "delete", SPACE)):
        with contextlib.suppress(subprocess.CalledProcessError):
            ip(*words)


def rows(server: Path) -> list[dict]:
    path = server / "run" / "metrics.jsonl"
    return [row for row in files.read_json_lines(path) if row["round"]] if path.exists() else []


def test_a_client_that_is_cut_off_is_left_out_and_comes_back(
    tmp_path, monkeypatch, network, scripts: Scripts
):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    sources = [
        {"path": str(tmp_path / "data" / f"{c}.jsonl"), "client": c} for c in ("anna", "ben")
    ]
    recipe = tiny.setting(
        tmp_path,
        federation={"rounds": 5, "targets": "raw"},
        evaluate={"every": 0, "personal": False},
        data={"sources": sources},
        deployment=PATIENCE,
    )
    out, port = tmp_path / "federation", free_port()
    fedsdr("deploy", "init", str(recipe), "--out", str(out), "--host", HERE, "--port", str(port))
    server = out / "server"
    give_free_ports(out)
    scripts.start(server / "start.sh")
    scripts.start(out / "anna" / "start.sh")
    scripts.start(out / "ben" / "start.sh", before=["ip", "netns", "exec", SPACE])
    log = server / "logs" / "superlink.log"
    wait_until("the SuperLink is up", 120, lambda: log.exists() and "running on" in log.read_text())
    fedsdr("deploy", "register", str(server))
    submitted = subprocess.Popen(
        [FEDSDR, "deploy", "run", str(server)], stderr=subprocess.PIPE, env={**os.environ}
    )
    try:
        wait_until("both take part", 500, lambda: any(len(r["clients"]) == 2 for r in rows(server)))
        ip("link", "set", f"{LINK}0", "down")
        wait_until("ben is left out", 400, lambda: any("absent" in row for row in rows(server)))
        ip("link", "set", f"{LINK}0", "up")
        assert submitted.wait(timeout=700) == 0
    finally:
        submitted.kill()
        submitted.communicate()
    taken = [row["clients"] for row in rows(server)]
    assert len(taken) == 5
    assert ["anna"] in taken
    assert all("anna" in each for each in taken)
    left_out = next(row for row in rows(server) if "absent" in row)
    assert "no answer within 45 s" in left_out["absent"]["ben"]
    assert taken[-1] == ["anna", "ben"]
