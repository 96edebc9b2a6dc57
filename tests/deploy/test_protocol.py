"""docs/protocol.md, played: the network and an adversary against the server and two clients.

Both ends are the program's own, with keys, journals and folders; only the model is left out, local
training being `ToyClient`. The server runs in a thread that is at work only while it is given
replies; its clock goes a second further each time. FEDSDR_PROTOCOL_RUNS says how many plays there
are.
"""

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean
from fedsdr.core.progress import silent_reporter
from fedsdr.data.records import ClientData
from fedsdr.deploy.client.journal import ORDER, Book
from fedsdr.deploy.client.operations import RUNS, ClientKeys, ClientSide
from fedsdr.deploy.protocol.messages import (
    Answer,
    Request,
    WireError,
    decode_answer,
    decode_request,
    encode_message,
)
from fedsdr.deploy.protocol.signing import (
    UNSIGNED,
    message_digest,
    seal_payload,
    unverified_payload,
)
from fedsdr.deploy.server import admission, dispatcher
from fedsdr.deploy.server.admission import Admission, Reply, ServerConnection
from fedsdr.deploy.server.dispatcher import RequestDispatcher
from fedsdr.deploy.server.engine import AdapterShape, RemoteEngine
from fedsdr.deploy.server.serve import RUN_FILE, known_run
from fedsdr.federation import rounds
from fedsdr.federation.in_process import InProcessEngine
from fedsdr.federation.rounds import Absent, RoundHooks, run_rounds
from fedsdr.model.identity import identity_text
from fedsdr.recipe.load import parse_recipe
from fedsdr.recipe.methods import resolve_methods
from fedsdr.workflows.method import round_options
from support import tiny_recipe, toy_clients

RUNS_PLAYED: Final = int(os.environ.get("FEDSDR_PROTOCOL_RUNS", "50"))
CLIENTS: Final = ("anna", "ben")
INTRUDER: Final = 7  # a node without a client's key
FIRST: Final = toy_clients.random_adapter("first")
KINDS: Final = ("unsigned", "another's", "old", "cut", "echo", "nothing")
PICKS: Final = st.integers(0, 69)  # tens: what is honest before, ones: which message
FORGED: Final = {**FIRST, **{f"control/{key}": tensor for key, tensor in FIRST.items()}}


def toy_recipe(folder: Path) -> Any:
    tables = tiny_recipe.recipe_tables(folder, [Path(f"{client}.jsonl") for client in CLIENTS])
    tables["federation"] = {"rounds": 3, "targets": "raw", "algorithm": "scaffold"}
    tables["evaluate"] = {"every": 1, "personal": False}
    tables["deployment"] = {
        "min_clients": 1, "round_seconds": 12.0, "prepare_seconds": 12.0, "wait_seconds": 12.0,
        "reconnect_seconds": 6.0,
    }  # fmt: skip
    return parse_recipe(tables)


class ToyRun:
    """What a client needs of a loaded run when nothing is trained; scores tell models apart."""

    identity: Final = {"weights": "0" * 32}
    fingerprint: Final = identity_text(identity)

    def __init__(self, client: str) -> None:
        self.clients = [ClientData(client, (), ())]
        self.raw = {client: ["record"] * 3}
        self.evaluator, self.name = self, 0.0
        self.model = SimpleNamespace(
            blank=lambda: FIRST, load=self.load, activate=lambda *streams: None
        )

    def load(self, stream: Any, adapter: Any) -> None:
        data = b"".join(adapter[key].numpy().tobytes() for key in sorted(adapter))
        self.name = float(int(hashlib.sha256(data).hexdigest()[:8], 16))

    def global_model(self) -> dict[str, Mean]:
        return {"loss": Mean(self.name, 1.0)}


class Stop(BaseException):
    """The server dies here."""


class Server:
    """The program's server in a thread; it waits wherever it looks for replies."""

    def __init__(self, play: "Play") -> None:
        self.play, self.dead, self.error = play, False, None
        self.pending: dict[str, tuple[int, bytes]] = {}  # what was sent, by message
        self.asked: set[str] = set()  # digests of all that this server sent
        self._replies: list[Reply] = []
        self._mine, self._others = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self._others.acquire()

    def step(self, *replies: Reply) -> None:
        """Give it replies, and wait until it waits again or has ended."""
        if self.ended:
            return
        self.play.clock += 1.0
        self._replies = list(replies)
        self._mine.release()
        self._others.acquire()

    @property
    def ended(self) -> bool:
        return not self.thread.is_alive()

    def kill(self) -> None:
        self.dead = True
        self.step()
        self.thread.join(10)

    def _run(self) -> None:
        try:
            serve(self.play, self)
        except (Stop, UserError) as error:
            self.error = error
        except BaseException as error:
            self.play.broken.append(error)
        finally:
            self.thread.is_alive = lambda: False  # type: ignore[method-assign]
            self._others.release()

    # --- The link

    def nodes(self) -> list[int]:
        return self.play.nodes()

    def send(self, node: int, data: bytes) -> str:
        id = f"message-{self.play.count('sent')}"
        self.pending[id] = node, data
        self.play.issued.append(data)
        self.asked.add(message_digest(unverified_payload(data)))
        return id

    def receive(self, ids: Collection[str]) -> list[Reply]:
        self._others.release()
        self._mine.acquire()
        if self.dead:
            raise Stop
        return [reply for reply in self._replies if reply.id in ids]


def serve(play: "Play", link: Server) -> None:
    """`serve_federation` without a model's shape, tracking and report."""
    recipe, out = play.recipe, play.folder / "out"
    roster = {client: play.keys[client].public_key() for client in CLIENTS}
    connection = ServerConnection(link, roster, play.keys["server"], 0.0)
    door = Admission(connection, recipe, known_run(out), silent_reporter())
    door.connect(1, recipe.deployment.wait_seconds)
    asking = RequestDispatcher(door, [play.resolved])
    asking.ask = play.watched(asking.ask)  # type: ignore[method-assign]
    method = play.resolved.within(out)
    engine = RemoteEngine(asking, method, AdapterShape(FIRST, None), silent_reporter())  # type: ignore[arg-type]
    engine.prepare()
    hooks = RoundHooks(engine.evaluate, observe=engine.observe)
    state = run_rounds(
        method, engine, engine.first_adapter(), round_options(method, b"", 1),
        silent_reporter(), hooks,
    )  # fmt: skip
    engine.finish(method.algorithm.broadcast(state))
    play.finished = True


class Play(RuleBasedStateMachine):
    """Rules: what the network, the machines and an adversary do. Invariants: docs/protocol.md."""

    folder: Path
    keys: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=ROOT))
        self.recipe = toy_recipe(self.folder)
        [self.resolved] = resolve_methods(self.recipe)
        self.method = self.resolved.name
        self.keys = KEYS
        self.clock, self._counts = 0.0, defaultdict(int)
        self.broken: list[BaseException] = []
        self.finished = self.is_forgetful = self.with_intruder = False
        self.target = CLIENTS[0]
        self.issued: list[bytes] = []  # all that the server ever sent
        self.signed: dict[str, set[bytes]] = defaultdict(set)  # client -> answers, as payloads
        self.heard: list[bytes] = []  # sealed answers, for an adversary to say again
        self.released: dict[tuple[str, str, str, str, int], bytes] = {}
        self.position: dict[tuple[str, str, str], tuple[int, int]] = {}
        self.counted: dict[tuple[str, str], int] = {}
        admission.time.monotonic = dispatcher.time.monotonic = lambda: self.clock
        self.sides = {client: self.begun(client) for client in CLIENTS}
        self.server = Server(self)

    def count(self, what: str) -> int:
        self._counts[what] += 1
        return self._counts[what]

    def nodes(self) -> list[int]:
        return [*([INTRUDER] if self.with_intruder else []), *range(100, 100 + len(CLIENTS))]

    def begun(self, client: str) -> ClientSide:
        return ClientSide(
            ToyRun(client), [self.resolved], client, self.folder / client,
            ClientKeys(self.keys[client], self.keys["server"].public_key()), silent_reporter(),
        )  # type: ignore[arg-type]  # fmt: skip

    # --- What a client does, watched

    def asked(self, client: str, data: bytes) -> bytes:
        """A client's answer to sealed bytes. Raises `WireError` where it gives none."""
        sealed = self.sides[client](data)
        payload, request = unverified_payload(sealed), decode_request(unverified_payload(data))
        answer = decode_answer(payload)
        self.signed[client].add(payload)
        self.heard.append(sealed)
        assert data in self.issued, "a client carried out what its server never asked"
        if answer.refused or request.operation == "hello":
            return sealed
        assert request.client == client
        assert request.journal == self.sides[client].journal.name, "it was asked in another life"
        life = client, request.journal, request.run
        place = (*life, request.operation, request.round)
        if place not in self.released:
            now = request.round, ORDER[request.operation]
            assert now > self.position.get(life, (-1, -1)), "a client went back"
            self.position[life], self.released[place] = now, payload
        assert self.released[place] == payload, "two answers to what is asked once"
        return sealed

    def watched(self, ask: Callable[..., Iterator[Answer | Absent]]) -> Any:
        def watch(clients: Any, question: Request, *rest: Any) -> Iterator[Answer | Absent]:
            for client, given in zip(clients, ask(clients, question, *rest), strict=True):
                if isinstance(given, Answer):
                    assert encode_message(given) in self.signed[client], "nobody's answer was taken"
                    asked = question.operation, question.round, question.run
                    assert (given.operation, given.round, given.run) == asked
                    assert given.client == client
                    assert given.request in self.server.asked, "an answer to an older question"
                yield given

        return watch

    def reply(self, id: str, node: int, data: bytes) -> Reply:
        """What an honest node brings; the intruder reaches a client by passing messages on."""
        client = self.target if node == INTRUDER else CLIENTS[node - 100]
        try:
            return Reply(id, self.asked(client, data))
        except WireError as error:
            return Reply(id, b"", str(error))

    def take(self, pick: int) -> tuple[str, int, bytes] | None:
        """One of the messages that are on their way, some steps of an honest network later; a
        server that has ended is followed."""
        self.everything_arrives(pick // 10)
        if self.server.ended:
            self.the_server_begins_a_new_run()
        waiting = sorted(self.server.pending)
        if not waiting:
            return None
        id = waiting[pick % len(waiting)]
        return id, *self.server.pending.pop(id)

    # --- The network

    @rule(times=st.integers(1, 6))
    def everything_arrives(self, times: int) -> None:
        for _ in range(times):
            messages = [(id, *sent) for id, sent in sorted(self.server.pending.items())]
            self.server.pending.clear()
            self.server.step(*[self.reply(*each) for each in messages])

    @rule(pick=PICKS, twice=st.booleans())
    def one_arrives(self, pick: int, twice: bool) -> None:
        if message := self.take(pick):
            reply = self.reply(*message)
            self.server.step(*([reply] * (2 if twice else 1)))

    @rule(pick=PICKS, answered=st.booleans())
    def one_is_lost(self, pick: int, answered: bool) -> None:
        """On the way to the client, or back, which keeps the adversary from nothing."""
        if message := self.take(pick):
            if answered:
                self.reply(*message)
            self.server.step()

    @rule(pick=PICKS, answered=st.booleans())
    def the_line_breaks(self, pick: int, answered: bool) -> None:
        if message := self.take(pick):
            if answered:
                self.reply(*message)
            self.server.step(Reply(message[0], b"", "the line broke"))

    @rule(seconds=st.integers(1, 14))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.server.step()

    # --- Machines

    @rule(client=st.sampled_from(CLIENTS))
    def a_client_begins_anew(self, client: str) -> None:
        self.sides[client] = self.begun(client)

    @rule(client=st.sampled_from(CLIENTS), what=st.sampled_from(["answers", "runs", "all"]))
    def a_client_forgets(self, client: str, what: str) -> None:
        self.is_forgetful = True
        folder = self.folder / client
        if what == "answers":
            for path in folder.rglob("answer-*"):
                path.unlink()
        else:
            shutil.rmtree(folder / RUNS if what == "runs" else folder, ignore_errors=True)
        self.sides[client] = self.begun(client)

    @rule(after=st.integers(0, 6))
    def the_server_dies(self, after: int) -> None:
        self.everything_arrives(after)
        self.server.kill()
        self.server = Server(self)

    @precondition(lambda self: self.saved)
    @rule()
    def the_server_loses_a_checkpoint(self) -> None:
        self.is_forgetful = True
        self.server.kill()
        for name, data in self.saved[0].items():
            (self.folder / "out" / name).write_bytes(data)
        self.server = Server(self)

    @rule()
    def the_server_begins_a_new_run(self) -> None:
        self.server.kill()
        if (self.folder / "out").exists():
            (self.folder / "out").rename(self.folder / f"away-{self.count('runs')}")
        SAVED.pop(self.folder / "out", None)
        self.finished = False
        self.server = Server(self)

    @precondition(lambda self: self._counts["runs"])
    @rule(pick=st.integers(0, 9))
    def the_server_brings_an_old_run_back(self, pick: int) -> None:
        """And says that it has just begun."""
        old = self.folder / f"away-{1 + pick % self._counts['runs']}"
        if not (old / RUN_FILE).exists():
            return
        self.is_forgetful = True
        self.server.kill()
        if (self.folder / "out").exists():
            (self.folder / "out").rename(self.folder / f"away-{self.count('runs')}")
        old.rename(self.folder / "out")
        told = files.read_json(self.folder / "out" / RUN_FILE)
        began = time.time_ns() // 10**6 + self.count("lies")
        files.write_json(self.folder / "out" / RUN_FILE, {**told, "began": began})
        SAVED.pop(self.folder / "out", None)
        self.finished = False
        self.server = Server(self)

    @property
    def saved(self) -> list[dict[str, bytes]]:
        return SAVED.get(self.folder / "out", [])

    # --- The adversary

    @rule(client=st.sampled_from(CLIENTS))
    def an_intruder_comes(self, client: str) -> None:
        self.with_intruder, self.target = True, client
        self.server.step()

    @rule(pick=PICKS, kind=st.sampled_from(KINDS), old=st.integers(0, 99))
    def one_is_answered_wrongly(self, pick: int, kind: str, old: int) -> None:
        if message := self.take(pick):
            id, _, data = message
            forged, heard = encode_message(self.forged(data)), self.like(data)
            said = {
                "unsigned": seal_payload(forged, UNSIGNED),
                "another's": seal_payload(forged, self.keys["stranger"]),
                "old": heard[old % len(heard)] if heard else b"",
                "cut": self.heard[-1][:-1] if self.heard else b"x",
                "echo": data,
                "nothing": b"",
            }[kind]
            self.server.step(Reply(id, said))

    def forged(self, data: bytes) -> Answer:
        """What would be taken for an answer, had the client signed it."""
        asked, payload = decode_request(unverified_payload(data)), unverified_payload(data)
        is_hello = asked.operation == "hello"
        facts = {"model": ToyRun.fingerprint, "fedsdr": "0", "journal": "0" * 32}
        return Answer(
            asked.operation, asked.run, self.target if is_hello else asked.client, asked.method,
            asked.round, FORGED if asked.operation == "fit" else {},
            3.0 if asked.operation in ("fit", "prepare") else 0.0,
            facts=facts if is_hello else {}, request=message_digest(payload),
        )  # fmt: skip

    def like(self, data: bytes) -> list[bytes]:
        """Answers that were heard to such a question, or else all."""
        asked = decode_request(unverified_payload(data))
        place = asked.operation, asked.round
        answers = [(decode_answer(unverified_payload(each)), each) for each in self.heard]
        same = [each for a, each in answers if (a.operation, a.round) == place]
        return same or self.heard

    @rule(client=st.sampled_from(CLIENTS), which=st.integers(0, 999), key=st.booleans())
    def a_client_is_asked_again(self, client: str, which: int, key: bool) -> None:
        """Anything that was ever sent to anybody, as it was or under another key."""
        if not self.issued:
            return
        data = self.issued[which % len(self.issued)]
        if not key:
            data = seal_payload(unverified_payload(data), self.keys["stranger"])
        try:
            self.asked(client, data)
        except WireError:
            return
        assert key, "a client answered a stranger"

    # --- What stays true

    @invariant()
    def nothing_of_the_program_failed(self) -> None:
        assert self.broken == []

    @invariant()
    def counted_only_grows_and_its_state_stays(self) -> None:
        for client in CLIENTS:
            book = Book.model_validate(files.read_json(self.folder / client / "journal.json"))
            page = book.methods.get(self.method)
            if page is None:
                continue
            life = book.name, str(book.run)
            assert self.counted.get(life, 0) <= page.counted <= page.fitted
            self.counted[life] = page.counted
            store = self.folder / client / RUNS / str(book.run) / "clients" / client
            if page.counted and not self.is_forgetful:
                assert (store / f"state-{page.counted:06d}.safetensors").exists()

    def teardown(self) -> None:
        """The network is honest from here on: the run ends, unless somebody's memory is lost."""
        try:
            self.with_intruder = False
            for _ in range(4):
                for _ in range(60):
                    if not self.server.ended:
                        self.everything_arrives(1)
                if self.finished or self.broken:
                    break
                self.server.kill()
                self.server = Server(self)
            self.server.kill()
            assert self.broken == []
            assert self.finished or self.is_forgetful, self.server.error
        finally:
            self.server.kill()
            SAVED.pop(self.folder / "out", None)
            shutil.rmtree(self.folder)


ROOT: Path
KEYS: dict[str, Any] = {}
SAVED: dict[Path, list[dict[str, bytes]]] = {}  # checkpoints but the last two, by folder


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global ROOT
    ROOT = tmp_path / "plays"
    ROOT.mkdir()
    for name in ("server", "stranger", *CLIENTS):
        KEYS[name] = ec.generate_private_key(ec.SECP256R1())  # ten times as fast as P-384
    save = rounds.save_checkpoint

    def saving(folder: Path, round: int, state: Any) -> None:
        save(folder, round, state)
        names = ("checkpoint.safetensors", "metrics.jsonl")
        kept = SAVED.setdefault(folder, [])
        kept.append({name: (folder / name).read_bytes() for name in names})
        del kept[:-2]

    monkeypatch.setattr(rounds, "save_checkpoint", saving)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is lost here
    monkeypatch.setattr(
        InProcessEngine, "trainer", lambda self, client, round: toy_clients.ToyClient(client)
    )
    monkeypatch.setattr(InProcessEngine, "at_once", 1)
    for module in (admission, dispatcher):
        clock = SimpleNamespace(monotonic=None, sleep=lambda seconds: None)
        monkeypatch.setattr(module, "time", clock)


def test_what_is_promised_holds_whatever_the_network_does(stage):
    case = Play.TestCase
    case.settings = settings(
        max_examples=RUNS_PLAYED, stateful_step_count=12, deadline=None, derandomize=True,
        database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    case("runTest").runTest()
