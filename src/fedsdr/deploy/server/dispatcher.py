"""The server's end of the lines: questions, and the answers that clients have signed to them.

A line (`Link`) may lose messages, deliver them late, or break for a while; a node may be anybody.
So every answer is verified, and matched to the question that it should be of; a question that got
an error or somebody else's words instead is asked again until its time is up, which does no harm,
since a client answers the same question by the same bytes. A client that is not connected is waited
for no longer than it takes to come back.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedsdr.deploy.protocol.egress import UndeclaredError, check_declared
from fedsdr.deploy.protocol.messages import Answer, Request, decode_answer
from fedsdr.deploy.protocol.signing import open_sealed
from fedsdr.deploy.protocol.wire import WireError
from fedsdr.deploy.server.admission import Admission, Reply, Sent, check_matches
from fedsdr.federation.rounds import Absent
from fedsdr.recipe.methods import Method


@dataclass
class _Asked:
    """A question on its way to a client, by every node that leads to it."""

    request: Request
    trouble: str
    sent: dict[str, Sent] = field(default_factory=dict)  # by message, while an answer is awaited
    again: dict[int, float] = field(default_factory=dict)  # node -> when it may be asked again
    away: float | None = None  # since when no node leads to the client


class RequestDispatcher:
    """Sends requests to the clients that have been admitted, and collects their answers."""

    def __init__(self, admission: Admission, methods: Iterable[Method]) -> None:
        self.admission, self.roster = admission, admission.roster
        self._recipes = {method.name: method.recipe for method in methods}

    def question(self, request: Request) -> Request:
        """`request`, in the name of this run."""
        name, began = self.admission.run
        return replace(request, run=name, began=began, recipe=self.admission.agreement)

    def ask(
        self,
        clients: Sequence[str],
        question: Request,
        seconds: float,
        counted: Mapping[str, int],
    ) -> Iterator[Answer | Absent]:
        """Each client's answer, in the order of `clients`, or why there is none in time.

        question: its `client`, `counted` and `journal` are filled in. counted: `Request.counted`
        by client.
        """
        self.admission.forgive()
        end = time.monotonic() + seconds
        troubles = self.admission.troubles
        open = {
            client: _Asked(
                replace(question, client=client, counted=counted.get(client, 0)),
                troubles.get(client, "it is not connected"),
            )
            for client in clients
        }
        done: dict[str, Answer | Absent] = {}
        for client in clients:
            while client not in done:
                if (waited := self._too_long(client, open[client], end, seconds)) is not None:
                    done[client] = Absent(client, waited)
                    break
                self._send_open(open)
                ids = [id for each in open.values() for id in each.sent]
                arrived = self.admission.look(ids)
                for reply in arrived:
                    self._take(reply, open, done)
                if not arrived:
                    time.sleep(self.admission.pause)
            open.pop(client, None)
            yield done.pop(client)

    def _too_long(self, client: str, asked: _Asked, end: float, seconds: float) -> str | None:
        """Why a client is not waited for any longer, if so."""
        now, patience = time.monotonic(), self.admission.recipe.deployment.reconnect_seconds
        if now > end:
            return f"no answer within {seconds:g} s: {asked.trouble}"
        if client in self.admission.places or asked.away is None:
            return None
        if now - asked.away > patience:
            return f"it did not come back within {patience:g} s: {asked.trouble}"
        return None

    def _send_open(self, open: Mapping[str, _Asked]) -> None:
        now = time.monotonic()
        for client, asked in open.items():
            nodes = self.admission.places.get(client, [])
            if nodes or asked.sent:
                asked.away = None
            elif asked.away is None:
                asked.away = now
            waiting = {sent.node for sent in asked.sent.values()}
            free = [node for node in nodes if node not in waiting]
            for node in [each for each in free if now >= asked.again.get(each, now)]:
                journal = self.admission.journals[client]
                sent = self.admission.send(node, replace(asked.request, journal=journal))
                asked.sent[sent.id] = sent
                asked.trouble = "it was asked, and has not answered"

    def _take(
        self, reply: Reply, open: dict[str, _Asked], done: dict[str, Answer | Absent]
    ) -> None:
        """Put a reply where it belongs; a second one to the same message belongs nowhere."""
        found = next(((c, each) for c, each in open.items() if reply.id in each.sent), None)
        if found is None:
            return
        client, asked = found
        sent = asked.sent.pop(reply.id)
        if reply.error:  # of the line, or of a trainer that is not up: it may come back
            asked.trouble = reply.error
            asked.again[sent.node] = time.monotonic() + 2 * self.admission.pause
            self.admission.lose(client, sent.node)
            return
        try:
            given = self._given(reply.data, client, sent)
        except WireError as error:  # not the client's word: by another node it may come
            asked.trouble = str(error)
            self.admission.displace(client, sent.node, asked.trouble)
            return
        del open[client]
        self.admission.trust(sent.node)
        done[client] = given

    def _given(self, data: bytes, client: str, sent: Sent) -> Answer | Absent:
        """What `client` has signed as its answer to this question; nothing else is even parsed.

        Absent where it is no right one. Raises `WireError` for what it did not sign, or not now.
        """
        payload = open_sealed(data, self.roster[client])
        try:
            answer = decode_answer(payload)
        except WireError as error:
            return Absent(client, str(error))
        if answer.request != sent.digest:
            raise WireError("answered another request, maybe an older one")
        try:
            check_matches(answer, sent.request)
            check_declared(answer, self._recipes.get(answer.method, self.admission.recipe))
        except (WireError, UndeclaredError) as error:
            return Absent(client, str(error))
        return Absent(client, answer.refused) if answer.refused else answer
