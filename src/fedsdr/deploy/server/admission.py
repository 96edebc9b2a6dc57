"""Which nodes lead to which client: greetings, and what becomes of a node that answers wrongly.

A node may be anybody. It is greeted with a nonce of its own, and leads to the client whose signed
answer to that very greeting it brings. That shows that it can reach the client now, not that it is
the client's own: it may pass messages on, and it may stop to. So several nodes can lead to one
client, all of them are asked, and one that brings something else than the client's signed answer to
the question loses its place; after a few times in a row, until the next question.
"""

import secrets
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.core.repeats import RepeatLimit
from fedsdr.deploy.protocol.agreement import agreed_keys, agreement_digest
from fedsdr.deploy.protocol.messages import (
    ANYONE,
    Answer,
    Request,
    decode_answer,
    encode_message,
)
from fedsdr.deploy.protocol.signing import (
    SignatureVerifier,
    Signer,
    Unsigned,
    message_digest,
    open_sealed,
    seal_payload,
    unverified_payload,
)
from fedsdr.deploy.protocol.wire import WireError
from fedsdr.model.identity import Identity, differing_parts, read_identity
from fedsdr.recipe.sections.recipe import Recipe

FORGET: Final = 120.0  # seconds after which a hello without an answer is sent again
LONGEST_HELLO: Final = 2**16  # bytes: it is read before it is known whose signature it should have
FAILURES: Final = 3  # wrong answers in a row, after which a node is avoided


class Reply(NamedTuple):
    """What came back for a message: data, or an error of the line."""

    id: str
    data: bytes
    error: str = ""


class Link(Protocol):
    """What carries messages to nodes: Flower's grid, or sockets."""

    def nodes(self) -> Sequence[int]:
        """The nodes that are connected now."""
        ...

    def send(self, node: int, data: bytes) -> str:
        """Send to a node; returns the message's id. Does not wait."""
        ...

    def receive(self, ids: Collection[str]) -> Sequence[Reply]:
        """The replies that have come for these messages, each of them once. Does not wait."""
        ...


class ServerConnection(NamedTuple):
    """What a server reaches its clients by.

    roster: the clients of the federation by id, in their order, with their keys. key: the server's;
    in a simulation all are `UNSIGNED`. pause: seconds between two looks for replies.
    """

    link: Link
    roster: Mapping[str, SignatureVerifier]
    key: Signer
    pause: float = 0.5


class Sent(NamedTuple):
    """A message on its way: its id on the line, its request, that one's digest, the node, and
    when."""

    id: str
    request: Request
    digest: str
    node: int
    at: float


class AdmittedRun(NamedTuple):
    """A run's name, drawn at random, and when it began (milliseconds since 1970)."""

    name: str
    began: int


class Admission:
    """Greets nodes, and knows which lead to the clients of the roster."""

    def __init__(
        self,
        connection: ServerConnection,
        recipe: Recipe,
        run: AdmittedRun,
        reporter: Reporter,
    ) -> None:
        self.link, self.roster, self.key, self.pause = connection
        unsigned = {isinstance(key, Unsigned) for key in self.roster.values()}
        assert unsigned <= {isinstance(self.key, Unsigned)}
        self.recipe, self.run, self.reporter = recipe, run, reporter
        self.places: dict[str, list[int]] = {}  # client -> the nodes that lead to it
        self.journals: dict[str, str] = {}  # client -> its journal's name
        self.troubles: dict[str, str] = {}  # client -> what was wrong with the last node of it
        self.model: Identity = {}  # what all clients' base models must be; {} before it is settled
        self._models: dict[str, str] = {}  # client -> its base model's identity, as it says
        self._greeted: dict[str, Sent] = {}  # hellos on their way, by message
        self._refused: dict[int, str] = {}  # node -> why it is no client of ours
        self._failures: Counter[int] = Counter()  # node -> wrong answers in a row
        self._avoided: set[int] = set()  # nodes that are not greeted until the next question
        self._reports: RepeatLimit[str] = RepeatLimit()
        self.agreement, self._agreed = agreement_digest(recipe), agreed_keys(recipe)

    def connect(self, needed: int, seconds: float) -> None:
        """Wait for all clients, or for `needed` of them once `seconds` are over.

        Where no run has settled it before, `model` becomes what most of them have. Raises
        `UserError` where fewer have come.
        """
        end = time.monotonic() + seconds
        with self.reporter.bar("clients connected", len(self.roster)) as bar:
            seen = 0
            while len(self.places) < len(self.roster) and time.monotonic() < end:
                self.look([])
                bar.advance(len(self.places) - seen)
                seen = len(self.places)
                time.sleep(self.pause)
        self._settle_model()
        if len(self.places) < needed:
            missing = ", ".join(client for client in self.roster if client not in self.places)
            others = "; ".join(f"node {n}: {why}" for n, why in self._refused.items())
            raise UserError(
                f"{len(self.places)} of {needed} clients came within {seconds:g} s; missing: "
                f"{missing}" + (f" (turned away: {others})" if others else "")
            )

    def look(self, ids: Collection[str]) -> list[Reply]:
        """Greet who is new, take answers to greetings; returns the other replies."""
        self._greet()
        replies = self.link.receive([*self._greeted, *ids])
        for reply in replies:
            if reply.id in self._greeted:  # no more, where a second reply follows
                self._greeting(reply)
        return [reply for reply in replies if reply.id in ids]

    def send(self, node: int, request: Request) -> Sent:
        """Send a request to a node, signed."""
        data = encode_message(request)
        id = self.link.send(node, seal_payload(data, self.key))
        return Sent(id, request, message_digest(data), node, time.monotonic())

    # --- Nodes that gave something else than an answer

    def lose(self, client: str, node: int) -> None:
        """The line to a node broke: it is greeted again before it is asked again."""
        nodes = [each for each in self.places.get(client, ()) if each != node]
        self.places.pop(client, None)
        if nodes:
            self.places[client] = nodes

    def displace(self, client: str, node: int, why: str) -> None:
        """A node brought what `client` did not sign as its answer."""
        self.lose(client, node)
        self.troubles[client] = why
        self._failures[node] += 1
        if self._failures[node] >= FAILURES:
            self._avoided.add(node)
            self._say("avoided", node, f"it led to {client} wrongly: {why}")

    def forgive(self) -> None:
        """Greet nodes again that were avoided; each more wrong answer ends that."""
        self._avoided.clear()

    def trust(self, node: int) -> None:
        """A node brought a client's signed answer to its question."""
        self._failures.pop(node, None)

    def _turn_away(self, node: int, why: str) -> None:
        self._refused[node] = why
        self._say("turned away", node, why)

    def _say(self, fate: str, node: int, why: str) -> None:
        """Report what becomes of a node; nodes may come without end, each by a new number."""
        words = f"node {node} is {fate}: {why}"
        for found, count in self._reports.add(f"{fate}: {why}", words):
            more = f" ({count - 1} more nodes since the last report)" if count > 1 else ""
            self.reporter.say(found + more)

    # --- Greetings

    def _settle_model(self) -> None:
        """The base model is what most clients have (of equally many, the roster's first); others
        are turned away."""
        came = Counter(self._models[client] for client in self.roster if client in self.places)
        if not self.model and came:
            [(most, _)] = came.most_common(1)
            self.model = read_identity(most)
        for client, nodes in list(self.places.items()):
            if parts := differing_parts(self.model, read_identity(self._models[client])):
                del self.places[client]
                for node in nodes:
                    self._turn_away(node, _other_model(parts))

    def _greet(self) -> None:
        """Say hello to nodes that are not known yet, and forget those that have left."""
        there, now = set(self.link.nodes()), time.monotonic()
        places = {c: [n for n in nodes if n in there] for c, nodes in self.places.items()}
        self.places = {client: nodes for client, nodes in places.items() if nodes}
        self._refused = {node: why for node, why in self._refused.items() if node in there}
        self._failures = Counter({n: count for n, count in self._failures.items() if n in there})
        self._greeted = {id: sent for id, sent in self._greeted.items() if now - sent.at < FORGET}
        placed = {node for nodes in self.places.values() for node in nodes}
        greeted = {sent.node for sent in self._greeted.values()}
        for node in sorted(there - placed - greeted - {*self._refused} - self._avoided):
            sent = self.send(node, self._hello())
            self._greeted[sent.id] = sent

    def _hello(self) -> Request:
        """A greeting for one node at one moment: no answer to another one is an answer to it."""
        name, began = self.run
        return Request(
            "hello", name, self.agreement, ANYONE, agreed=self._agreed, began=began,
            nonce=secrets.token_hex(16),
        )  # fmt: skip

    def _greeting(self, reply: Reply) -> None:
        """A node's answer to hello: it leads to one of our clients, or is turned away."""
        sent = self._greeted.pop(reply.id)
        node = sent.node
        if reply.error:  # it is asked again at the next look
            return
        try:
            client = self._greeter(reply.data)
            answer = decode_answer(open_sealed(reply.data, self.roster[client]))
            if answer.request != sent.digest:
                raise WireError("it answered another greeting than its own")
            check_matches(answer, replace(sent.request, client=client))
            if answer.refused:
                raise WireError(answer.refused)
            model = answer.facts.get("model", "")
            if not (theirs := read_identity(model)):
                raise WireError("it does not say what its base model is: is its fedsdr the same?")
            if parts := differing_parts(self.model, theirs):
                raise WireError(_other_model(parts))
        except WireError as error:
            self._turn_away(node, str(error))
            return
        self._models[client], self.journals[client] = model, answer.facts.get("journal", "")
        self.places[client] = [*self.places.get(client, ()), node]

    def _greeter(self, data: bytes) -> str:
        """The client that an answer to hello names. Raises `WireError` where it is none of ours."""
        if len(data) > LONGEST_HELLO:
            raise WireError(f"its hello has {len(data)} bytes, and {LONGEST_HELLO} are plenty")
        client = decode_answer(unverified_payload(data)).client
        if client not in self.roster:
            raise WireError(f"client {client!r} is not in the roster")
        return client


def check_matches(answer: Answer, request: Request) -> None:
    """Raise `WireError` where an answer to this request says that it is to something else."""
    for field in ("run", "client", "operation", "method", "round"):
        given, asked = getattr(answer, field), getattr(request, field)
        if given != asked:
            raise WireError(f"answered for {field} {given!r}, but was asked for {asked!r}")


def _other_model(parts: Sequence[str]) -> str:
    return f"its base model is not the other clients': it differs in {', '.join(parts)}"
