"""The server's end of the lines: which client is behind which node, questions and answers.

A line (`Link`) may lose messages, deliver them late, or break for a while; a node may be anybody.
So every answer is verified, and matched to the question that it should be of; a question that got
an error instead of an answer is asked again until its time is up, which does no harm, since a
client answers the same question by the same bytes. A client that is not connected is waited for no
longer than it takes to come back.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from fedsdr.deploy.agreement import agreed, agreement
from fedsdr.deploy.egress import UndeclaredError, check_declared
from fedsdr.deploy.identity import Signer, Unsigned, Verifier, digest, seal, unseal, unverified
from fedsdr.deploy.wire import Answer, Request, WireError, decode_answer, encode
from fedsdr.errors import UserError
from fedsdr.model.identity import Identity, differing, read_identity
from fedsdr.progress import Reporter
from fedsdr.sections.recipe import Recipe
from fedsdr.training.rounds import Absent

FORGET: Final = 120.0  # seconds after which a hello without an answer is said again
LONGEST_HELLO: Final = 2**16  # bytes: it is read before it is known whose signature it should have


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


class _Sent(NamedTuple):
    """A message on its way: its id on the line, the digest of its request, the node, and when."""

    id: str
    digest: str
    node: int
    at: float


@dataclass
class _Asked:
    """A question on its way to a client."""

    request: Request
    sent: _Sent | None = None  # while an answer is awaited
    again: float = 0.0  # when it may be sent again
    away: float | None = None  # since when the client is not connected
    trouble: str = "it is not connected"


class Switchboard:
    """Greets nodes, finds the clients behind them, and asks these."""

    def __init__(
        self,
        link: Link,
        recipe: Recipe,
        run: str,
        roster: Mapping[str, Verifier],
        reporter: Reporter,
        key: Signer,
        pause: float = 0.5,
    ) -> None:
        """roster: the clients of the federation by id, in their order, with their keys. key: the
        server's; in a simulation all are `UNSIGNED`. pause: seconds between two looks for replies.
        """
        assert {isinstance(each, Unsigned) for each in roster.values()} <= {
            isinstance(key, Unsigned)
        }
        self.link, self.recipe, self.run, self.roster = link, recipe, run, roster
        self.reporter, self.key, self.pause = reporter, key, pause
        self.places: dict[str, int] = {}  # client -> node
        self.model: Identity = {}  # what all clients' base models must be; {} before it is settled
        self._models: dict[str, str] = {}  # client -> its base model's identity, as it was told
        self._greeted: dict[str, _Sent] = {}  # hellos on their way, by message
        self._strangers: dict[int, str] = {}  # node -> why it is no client of ours
        self.agreement = agreement(recipe)
        self.hello = Request("hello", run, self.agreement, "-", agreed=agreed(recipe))

    # --- Who is there

    def connect(self, needed: int, seconds: float) -> None:
        """Wait for all clients, or for `needed` of them once `seconds` are over.

        Where no run has settled it before, `model` becomes what most of them have. Raises
        `UserError` where fewer have come.
        """
        end = time.monotonic() + seconds
        with self.reporter.bar("clients connected", len(self.roster)) as bar:
            seen = 0
            while len(self.places) < len(self.roster) and time.monotonic() < end:
                self._look([])
                bar.advance(len(self.places) - seen)
                seen = len(self.places)
                time.sleep(self.pause)
        self._settle_model()
        if len(self.places) < needed:
            missing = ", ".join(client for client in self.roster if client not in self.places)
            others = "; ".join(f"node {n}: {why}" for n, why in self._strangers.items())
            raise UserError(
                f"{len(self.places)} of {needed} clients came within {seconds:g} s; missing: "
                f"{missing}" + (f" (turned away: {others})" if others else "")
            )

    def _settle_model(self) -> None:
        """The base model is what most clients have (of equally many, the roster's first); others
        are turned away."""
        came = Counter(self._models[client] for client in self.roster if client in self.places)
        if not self.model and came:
            [(most, _)] = came.most_common(1)
            self.model = read_identity(most)
        for client, node in list(self.places.items()):
            if parts := differing(self.model, read_identity(self._models[client])):
                del self.places[client]
                self._turn_away(node, _other_model(parts))

    def _turn_away(self, node: int, why: str) -> None:
        self._strangers[node] = why
        self.reporter.say(f"node {node} is turned away: {why}")

    def _greet(self) -> None:
        """Say hello to nodes that are not known yet, and forget those that have left."""
        there, now = set(self.link.nodes()), time.monotonic()
        self.places = {client: node for client, node in self.places.items() if node in there}
        self._strangers = {node: why for node, why in self._strangers.items() if node in there}
        self._greeted = {id: sent for id, sent in self._greeted.items() if now - sent.at < FORGET}
        greeted = {sent.node for sent in self._greeted.values()}
        for node in sorted(there - {*self.places.values(), *self._strangers, *greeted}):
            sent = self._send(node, self.hello)
            self._greeted[sent.id] = sent

    def _greeting(self, reply: Reply) -> None:
        """A node's answer to hello: it is one of our clients, or a stranger."""
        sent = self._greeted.pop(reply.id)
        node = sent.node
        if reply.error:  # it is asked again at the next look
            return
        try:
            answer = self._verified(reply.data, self._greeter(reply.data))
            _check_matches(answer, replace(self.hello, client=answer.client), sent.digest)
            if answer.refused:
                raise WireError(answer.refused)
            model = answer.facts.get("model", "")
            if not (told := read_identity(model)):
                raise WireError("it does not say what its base model is: is its fedsdr the same?")
            if parts := differing(self.model, told):
                raise WireError(_other_model(parts))
        except WireError as error:
            self._turn_away(node, str(error))
            return
        self._models[answer.client] = model
        self.places[answer.client] = node

    def _greeter(self, data: bytes) -> str:
        """Who says that a hello's answer is from them. Raises `WireError` where that is nobody."""
        if len(data) > LONGEST_HELLO:
            raise WireError(f"its hello has {len(data)} bytes, and {LONGEST_HELLO} are plenty")
        client = decode_answer(unverified(data)).client
        if client not in self.roster:
            raise WireError(f"client {client!r} is not in the roster")
        return client

    # --- Questions

    def ask(
        self,
        clients: Sequence[str],
        question: Request,
        seconds: float,
        counted: Mapping[str, int],
    ) -> Iterator[Answer | Absent]:
        """Each client's answer, in the order of `clients`, or why there is none in time.

        question: its `client` and `counted` are filled in. counted: `Request.counted` by client.
        """
        end = time.monotonic() + seconds
        open = {
            client: _Asked(replace(question, client=client, counted=counted.get(client, 0)))
            for client in clients
        }
        done: dict[str, Answer | Absent] = {}
        for client in clients:
            while client not in done:
                if (waited := self._too_long(open[client], end, seconds)) is not None:
                    done[client] = Absent(client, waited)
                    break
                self._send_open(open)
                arrived = self._look([each.sent.id for each in open.values() if each.sent])
                for reply in arrived:
                    self._take(reply, open, done)
                if not arrived:
                    time.sleep(self.pause)
            open.pop(client, None)
            yield done.pop(client)

    def _too_long(self, asked: _Asked, end: float, seconds: float) -> str | None:
        """Why a client is not waited for any longer, if so."""
        now, patience = time.monotonic(), self.recipe.deployment.reconnect_seconds
        if now > end:
            return f"no answer within {seconds:g} s: {asked.trouble}"
        if asked.away is not None and now - asked.away > patience:
            return f"it did not come back within {patience:g} s: {asked.trouble}"
        return None

    def _send_open(self, open: Mapping[str, _Asked]) -> None:
        now = time.monotonic()
        for client, asked in open.items():
            if client in self.places or asked.sent is not None:
                asked.away = None
            elif asked.away is None:
                asked.away = now
            if asked.sent is None and client in self.places and now >= asked.again:
                asked.sent = self._send(self.places[client], asked.request)
                asked.trouble = "it was asked, and has not answered"

    def _take(
        self, reply: Reply, open: dict[str, _Asked], done: dict[str, Answer | Absent]
    ) -> None:
        """Put a reply where it belongs; a second one to the same message belongs nowhere."""
        waiting = [(client, a, a.sent) for client, a in open.items() if a.sent]
        found = next((each for each in waiting if each[-1].id == reply.id), None)
        if found is None:
            return
        client, asked, sent = found
        if reply.error:  # of the line, or of a trainer that is not up: it may come back
            asked.sent, asked.trouble = None, reply.error
            asked.again = time.monotonic() + 2 * self.pause
            self.places.pop(client, None)
            return
        del open[client]
        try:
            answer = self._verified(reply.data, client)
            _check_matches(answer, asked.request, sent.digest)
            check_declared(answer)
            done[client] = Absent(client, answer.refused) if answer.refused else answer
        except (WireError, UndeclaredError) as error:
            done[client] = Absent(client, str(error))

    def _look(self, ids: Collection[str]) -> list[Reply]:
        """Greet who is new, take answers to greetings; returns the other replies."""
        self._greet()
        replies = self.link.receive([*self._greeted, *ids])
        for reply in replies:
            if reply.id in self._greeted:  # no more, where a second reply follows
                self._greeting(reply)
        return [reply for reply in replies if reply.id in ids]

    def _send(self, node: int, request: Request) -> _Sent:
        data = encode(request)
        id = self.link.send(node, seal(data, self.key))
        return _Sent(id, digest(data), node, time.monotonic())

    def _verified(self, data: bytes, client: str) -> Answer:
        """An answer that `client` has signed, of this run. Nothing else is even parsed."""
        answer = decode_answer(unseal(data, self.roster[client]))
        if answer.run != self.run:
            raise WireError(f"client {answer.client!r} answered for another run, {answer.run!r}")
        return answer


def _other_model(parts: Sequence[str]) -> str:
    return f"its base model is not the other clients': it differs in {', '.join(parts)}"


def _check_matches(answer: Answer, request: Request, digest: str) -> None:
    """Raise `WireError` where an answer is not one to this request."""
    for field in ("client", "operation", "method", "round"):
        given, asked = getattr(answer, field), getattr(request, field)
        if given != asked:
            raise WireError(f"answered for {field} {given!r}, but was asked for {asked!r}")
    if answer.request != digest:
        raise WireError("answered another request of the same round, maybe an older one")
