"""What a client of a small federation keeps of a run, for its owner alone, and expects of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fedsdr.core import files
from fedsdr.deploy.client.operations import ClientSide
from fedsdr.deploy.client.questions import HEADERS
from fedsdr.deploy.protocol.signing import message_digest, unverified_payload
from support.message_lines import Loopback, loopback
from support.signed_federation import Federation


class Served(NamedTuple):
    """A finished federation: its clients, what was on the line, and the user's common cache."""

    sides: dict[str, ClientSide]
    line: Loopback
    cache: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        federation = Federation(folder, federation={"targets": "distilled", "rounds": 1})
        sides = federation.clients()
        line = loopback(sides)
        federation.serve(line)
        yield Served(sides, line, folder / "cache")


def test_the_folders_of_runs_are_their_owners_alone(served):
    for side in served.sides.values():
        [run] = side.folder.glob("runs/*")
        assert [path.stat().st_mode & 0o777 for path in (side.folder, run)] == [0o700, 0o700]


def test_rewrites_are_cached_in_the_clients_own_folder(served):
    for side in served.sides.values():
        assert (side.folder / "rewrites.sqlite").stat().st_mode & 0o777 == 0o600
    assert not [*served.cache.rglob("*.sqlite")]


def test_the_log_of_what_left_names_each_message_by_its_digest(served):
    for node, side in zip(served.line.traffic, served.sides.values(), strict=True):
        sent = [unverified_payload(answer) for _, answer in served.line.traffic[node]]
        logged = [row["digest"] for row in files.read_json_lines(side.audit.path)]
        assert logged == [message_digest(payload) for payload in sent]


def test_no_question_is_longer_than_a_client_expects(served):
    """Nor does a client make room for much more than the longest."""
    for node, side in zip(served.line.traffic, served.sides.values(), strict=True):
        longest = max(len(asked) for asked, _ in served.line.traffic[node])
        assert longest < side.longest_request() < longest + 2 * HEADERS
