"""The power fails at any instant of a run, and what the disk has then is gone on with.

As databases are tested: the calls of a whole run are recorded, played up to every one of them, and
all that POSIX lets the disk have then (`power`) is resumed. Each must end as if nothing had
happened, or be refused in one line.
"""

import errno
import itertools
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core import files
from fedsdr.core.errors import UserError, WriteError
from fedsdr.core.layout import LOCK_FILE
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.protocol.signing import UNSIGNED
from fedsdr.deploy.server.admission import ServerConnection
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows import method as method_run
from fedsdr.workflows import summary
from fedsdr.workflows.live_report import LiveReport
from fedsdr.workflows.prepare import PreparedRun, prepare_run
from fedsdr.workflows.run import run_recipe
from support import lossy_disk, tiny_recipe
from support.message_lines import client_sides, loopback

CLIENTS = ("anna", "ben")


def small(folder: Path) -> Recipe:
    """Two clients, three rounds, S kept from round to round, noise under a secret seed."""
    sources = [{"path": str(folder / "data" / f"{c}.jsonl"), "client": c} for c in CLIENTS]
    return load_recipe(
        tiny_recipe.write_recipe(
            folder,
            data={"sources": sources},
            local={"rectify_steps": 1, "smooth_steps": 1, "smoothing_state": "keep"},
            distill={"min_tokens": 2},
            evaluate={"every": 2},
            privacy={"mode": "local", "noise_multiplier": 1.0, "clip": 0.1},
        )
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """What takes time and writes nothing is done once: the model loaded, the report drawn."""
    folder = tmp_path_factory.mktemp("power")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        patch.setattr(method_run.secrets, "token_hex", lambda size: "01" * size)
        patch.setattr(
            summary, "write_report", lambda out, _: files.write_text(out / "report.html", "")
        )
        patch.setattr(LiveReport, "observe", lambda *_: None)
        recipe = small(folder)
        loaded = prepare_run(recipe).load(silent_reporter())
        patch.setattr(PreparedRun, "load", lambda *_: loaded)
        yield recipe


def ended(out: Path) -> dict[str, Any]:
    """What a run has come to: without clocks, and what a lost removal may bring back."""
    found: dict[str, Any] = dict(lossy_disk.read(out))
    found["metrics.jsonl"] = [
        {**row, "train": {**row.get("train", {}), "seconds": 0}}
        for row in files.read_json_lines(out / "metrics.jsonl")
    ]
    found["summary.json"] = {**json.loads(found["summary.json"]), "seconds": 0, "resumed": 0}
    found["environment.json"] = "of its time"
    older = [
        str(path.relative_to(out))
        for client in CLIENTS
        for path in sorted((out / "clients" / client).glob("state-*"))[:-1]
    ]
    return {name: each for name, each in found.items() if name not in (LOCK_FILE, *older)}


def resumed(recipe: Recipe, contents: lossy_disk.Contents, folder: Path) -> dict[str, Any] | str:
    """What comes of a run that finds this on the disk, or the line that refuses it."""
    lossy_disk.put(contents, folder)
    try:
        run_recipe(recipe, folder / "out", silent_reporter(), resume=True)
    except UserError as error:
        return str(error)
    return ended(folder / "out")


def states(calls: list[lossy_disk.Call], draw: random.Random) -> Iterator[lossy_disk.Contents]:
    """Every different thing that a loss of power may leave: of what was not synced all, nothing,
    the names, the data, and parts drawn at random."""
    disk, seen = lossy_disk.Disk(), set()
    ways = [
        lossy_disk.EVERYTHING,
        lossy_disk.NOTHING,
        lossy_disk.NAMES,
        lossy_disk.DATA,
        lossy_disk.SOME,
        lossy_disk.SOME,
    ]
    for call in [None, *calls]:
        if call is not None:
            disk.play(call)
        for left in [disk.left(how, draw) for how in ways]:
            key = frozenset(it for it in left.items() if not is_swept(it[0]))
            if key not in seen:
                seen.add(key)
                yield left


def is_swept(name: str) -> bool:
    """What a resumed run deletes: the first state with any of it stands for those without."""
    return Path(name).name == LOCK_FILE or bool(files.LEFTOVER.fullmatch(Path(name).name))


def test_a_run_ends_the_same_whatever_a_loss_of_power_leaves_of_it(recipe, tmp_path):
    with lossy_disk.recorded(tmp_path) as calls:
        run_recipe(recipe, tmp_path / "out", silent_reporter())
    wanted, whole = ended(tmp_path / "out"), lossy_disk.read(tmp_path)
    disk = lossy_disk.Disk()
    for call in calls:
        disk.play(call)
    assert (
        disk.left(lossy_disk.EVERYTHING, random.Random(0)) == whole
    )  # nothing was written past it
    synced = disk.left(lossy_disk.NOTHING, random.Random(0))
    assert {name: synced.get(name) for name in whole} == whole
    found = list(states(calls, random.Random(0)))
    assert len(found) > 50
    for number, contents in enumerate(found):
        assert resumed(recipe, contents, tmp_path / str(number)) == wanted


def test_a_disk_that_is_full_at_any_write_is_one_line_and_room_is_all_it_takes(
    recipe, tmp_path, monkeypatch
):
    recipe = override_recipe(recipe, {"federation.rounds": 1})
    run_recipe(recipe, tmp_path / "out", silent_reporter())
    wanted, real = ended(tmp_path / "out"), os.write
    for room in itertools.count():
        left, out = itertools.count(room, -1), tmp_path / str(room) / "out"

        def write(descriptor: int, data: Any, left: Iterator[int] = left) -> int:
            if next(left) > 0:
                return real(descriptor, data)
            raise OSError(errno.ENOSPC, "")

        monkeypatch.setattr(os, "write", write)
        try:
            run_recipe(recipe, out, silent_reporter())
            break
        except WriteError as error:
            said = str(error)
        finally:
            monkeypatch.setattr(os, "write", real)
        assert re.fullmatch(r"cannot write .*: no space left on device: make room", said)
        assert not [*out.rglob(".*")]
        if room % 4 == 0:  # what was written before is what a loss of power may leave, too
            run_recipe(recipe, out, silent_reporter(), resume=True)
            assert ended(out) == wanted
    assert room > 20


def test_a_line_that_was_never_synced_is_missed(recipe, tmp_path):
    """What the test above would find: a checkpoint is there, the line of its round is not."""
    with lossy_disk.recorded(tmp_path) as calls:
        run_recipe(recipe, tmp_path / "out", silent_reporter())
    syncs = [call for call in calls if call == ("sync", "out/metrics.jsonl")]
    assert len(syncs) == 3  # of its appends: what is renamed was synced under another name
    unsynced = [call for call in calls if call not in syncs]
    last = max(n for n, call in enumerate(unsynced) if call[-1] == "out/checkpoint.safetensors")
    disk = lossy_disk.Disk()
    for call in unsynced[: last + 2]:
        disk.play(call)
    said = resumed(recipe, disk.left(lossy_disk.NOTHING, random.Random(0)), tmp_path / "again")
    assert "does not have a line for each round up to 3" in str(said)


# A federation: the power fails at one site, and the others have moved on


def federation(recipe: Recipe, folder: Path) -> dict[str, Any] | str:
    """Serve a run, or go on with it, and tell what it has come to."""
    sides = client_sides(recipe, folder)
    roster = dict.fromkeys(CLIENTS, UNSIGNED)
    try:
        connection = ServerConnection(loopback(sides), roster, UNSIGNED, pause=0)
        serve_federation(recipe, folder / "server", connection, silent_reporter())
    except UserError as error:
        return str(error)
    found: dict[str, Any] = {
        "/".join(part for part in path.relative_to(folder).parts if len(part) != 32): (
            path.read_bytes()
        )
        for path in folder.rglob("adapter_model.safetensors")
    }
    rows = files.read_json_lines(folder / "server" / "metrics.jsonl")
    for row in rows:
        row.get("train", {}).pop("seconds", None)
    return found | {"rows": rows, "result": files.read_json(folder / "server" / "result.json")}


@pytest.mark.parametrize(
    "most", [12, pytest.param(9999, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("where", ["server/", "anna/"])
def test_a_federation_ends_the_same_where_one_site_loses_what_it_had_not_synced(
    recipe, tmp_path, where, most
):
    """most: so many of the states are gone on with, drawn at random."""
    recipe = override_recipe(recipe, {"privacy.mode": "none", "federation.rounds": 2})
    (tmp_path / "whole").mkdir()
    with lossy_disk.recorded(tmp_path / "whole") as calls:
        wanted = federation(recipe, tmp_path / "whole")
    assert {"server/global/adapter_model.safetensors", "rows"} < set(wanted)
    assert len([name for name in wanted if "private/adapter" in name]) == 2
    draw, disk, found, seen = random.Random(0), lossy_disk.Disk(), [], set()
    for call in calls:
        disk.play(call)
        if call[1].startswith(where):
            for how in (lossy_disk.NOTHING, lossy_disk.SOME):
                left = disk.left(how, draw, where)
                if (key := frozenset(left.items())) not in seen:
                    seen.add(key)
                    found.append(left)
    assert len(found) > 30
    for number, contents in enumerate(draw.sample(found, min(most, len(found)))):
        lossy_disk.put(contents, tmp_path / str(number))
        assert federation(recipe, tmp_path / str(number)) == wanted
