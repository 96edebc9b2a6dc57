"""The client's side: carries out what its own server asks of it, and nothing else.

Whatever program carries the messages, only these operations exist, on this client's own recipe,
data and private folder, for requests that the server's key has signed:

hello      say which model and version this is
prepare    rewrite the records, where the method asks for it
fit        the client half of the algorithm, once a round
evaluate   judge a global model by the held-out records
finish     write the client's own model, and judge it

A request that comes again, after a crash on either side, is answered by the same bytes: an answer
is on disk before it is sent, and the question in the journal (`fedsdr.deploy.journal`). A round
that is over stays over, and one whose update did not count, being late or refused, leaves no trace:
the next begins from the state of the last that did. docs/protocol.md has all of it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedsdr import __version__, files
from fedsdr.adapters import Adapter, unwrap
from fedsdr.algorithms.compose import build_algorithm
from fedsdr.algorithms.contract import Algorithm, Personal
from fedsdr.deploy.agreement import agreed, agreement
from fedsdr.deploy.begun import changed_parts
from fedsdr.deploy.egress import Audit, UndeclaredError, check_declared, check_tensors
from fedsdr.deploy.identity import Signer, Unsigned, Verifier, digest, seal, unseal
from fedsdr.deploy.journal import Journal, RefusalError
from fedsdr.deploy.questions import check_question, longest_request
from fedsdr.deploy.wire import (
    LONGEST,
    Answer,
    Operation,
    Request,
    WireError,
    decode_request,
    encode,
    printable,
)
from fedsdr.engines.in_process import InProcess
from fedsdr.engines.workbench import Workbench
from fedsdr.folders import method_folders
from fedsdr.method_run import client_examples, finish_client, noise_seed
from fedsdr.metrics import Mean, Metrics, unweighted
from fedsdr.progress import Reporter
from fedsdr.sections.recipe import Recipe
from fedsdr.training.rounds import Participant
from fedsdr.training.store import ClientStore

RUNS: Final = "runs"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """One of the recipe's methods, and where what is kept of it in a run lies."""

    folder: Path
    recipe: Recipe
    algorithm: Algorithm


@dataclass(frozen=True)
class Course(Method):
    """A method of a run whose records are rewritten."""

    engine: InProcess


class ClientSide:
    """One client of a federation: `client(request) -> answer`, both as sealed bytes."""

    def __init__(
        self,
        bench: Workbench,
        recipe: Recipe,
        client: str,
        folder: Path,
        reporter: Reporter,
        key: Signer,
        server: Verifier,
    ) -> None:
        """bench: with this client's records alone. folder: private, all that is kept lies in it.

        key: of this client. server: of the one whose requests are carried out. Both are
        `UNSIGNED` in a simulation.
        """
        assert isinstance(key, Unsigned) == isinstance(server, Unsigned)
        self.bench, self.recipe, self.client = bench, recipe, client
        self.folder, self.reporter = folder, reporter
        self.key, self.server = key, server
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.remove_leftovers(folder)
        self.audit, self.journal = Audit(folder), Journal(folder)
        self._courses: dict[tuple[str, str], Course] = {}

    def __call__(self, data: bytes) -> bytes:
        """Carry out a sealed request. Raises `WireError` for what no server of ours has sent."""
        try:
            payload = unseal(data, self.server)
            request = decode_request(payload)
            if request.operation != "hello" and request.journal != self.journal.name:
                raise WireError("a question for another journal: the server has to greet first")
        except WireError as error:
            self.audit.refused(str(error))
            raise
        answer, sent = self._answer(request, digest(payload))
        self.audit.sent(answer, sent, digest(sent))
        return seal(sent, self.key)

    def _answer(self, request: Request, name: str) -> tuple[Answer, bytes]:
        """An answer and its bytes: whatever goes wrong, there is one, and it quotes no data."""
        place = (request.operation, request.run, self.client, request.method, request.round)
        blank = Answer(*place, request=name)
        try:
            self._check(request)
            answer = self._carried_out(request, blank, name)
            return answer, encode(answer)
        except (RefusalError, UndeclaredError) as error:
            log.error("refused: %s", error)
            refusal = replace(blank, refused=printable(str(error))[:LONGEST])
        except Exception:  # whose text may quote a record: it stays here
            log.exception("%s of round %d failed", request.operation, request.round)
            refusal = replace(blank, refused="failed for a reason that its own log tells")
        return refusal, encode(refusal)

    def _check(self, request: Request) -> None:
        """Raise `RefusalError` unless the request is for this client and its recipe."""
        if request.operation == "hello":  # whose answer tells who this is, and what differs
            return
        if request.client != self.client:
            raise RefusalError(f"this is client {self.client!r}, not {request.client!r}")
        if request.recipe != agreement(self.recipe):
            raise RefusalError(
                "this client's recipe is not the server's: restart both with the same"
            )

    def _carried_out(self, request: Request, blank: Answer, name: str) -> Answer:
        """The answer to a question, kept and entered; that of an earlier time, if there was one."""
        if request.operation == "hello":
            answer = self._hello(request, blank)
            check_declared(answer)
            return answer
        method = self._method(request)
        check_question(request, method.recipe, method.algorithm, self._first())
        if (before := self.journal.recall(request, name, method.folder)) is not None:
            return before
        answer = OPERATIONS[request.operation](self, request, blank)
        check_declared(answer)
        self.journal.enter(request, name, method.folder, answer)
        return answer

    # --- Operations

    def _hello(self, request: Request, blank: Answer) -> Answer:
        mine = agreed(self.recipe)
        differing = sorted(
            key
            for key in mine.keys() | request.agreed.keys()
            if mine.get(key) != request.agreed.get(key)
        )
        if differing:
            here, there = (each.get(differing[0], "not known") for each in (mine, request.agreed))
            raise RefusalError(
                f"the recipes differ in {', '.join(differing[:5])}: here {differing[0]} is {here}, "
                f"at the server {there}"
            )
        facts = {"model": self.bench.fingerprint, "fedsdr": __version__}
        return replace(blank, facts={**facts, "journal": self.journal.name})

    def _prepare(self, request: Request, blank: Answer) -> Answer:
        course = self._course(request)
        examples = course.engine.examples[self.client]
        if not course.recipe.federation.sample_counts or course.recipe.privacy.mode != "none":
            return blank
        return replace(blank, weight=float(len(examples["raw"])))

    def _fit(self, request: Request, blank: Answer) -> Answer:
        course = self._course(request)
        engine = course.engine
        engine.rewind(self.client, request.counted)
        [participant] = engine.run_round(
            course.algorithm, request.shared, request.round, [self.client]
        )
        assert isinstance(participant, Participant)
        update = participant.update
        answer = replace(
            blank, change=update.change, weight=update.weight, metrics=dict(update.metrics)
        )
        kept = engine.state(self.client, request.round).private.values()
        check_declared(answer, [unwrap(private) for private in kept])
        check_tensors(answer, course.algorithm, self._first())
        return answer

    def _first(self) -> Adapter:
        """An adapter of this client's model, by which the algorithm says what updates are like."""
        return self.bench.first_adapter(self.recipe.seed)

    def _evaluate(self, request: Request, blank: Answer) -> Answer:
        recipe = self._method(request).recipe
        self.bench.use(Personal(request.shared))
        return replace(blank, metrics=_told(recipe, self.bench.evaluator.global_model()))

    def _finish(self, request: Request, blank: Answer) -> Answer:
        course = self._course(request)
        course.engine.commit(request.counted, [self.client])
        own = finish_client(
            course.engine, course.algorithm, request.shared, self.client, request.counted
        )
        return replace(blank, metrics=_told(course.recipe, own))

    # --- What is kept from request to request

    def _course(self, request: Request) -> Course:
        """The method of a run; its records are rewritten the first time."""
        place = (request.run, request.method)
        if place not in self._courses:
            of_run = {each: c for each, c in self._courses.items() if each[0] == request.run}
            self._courses = {**of_run, place: self._begin(request)}
        return self._courses[place]

    def _method(self, request: Request) -> Method:
        folder = self.folder / RUNS / request.run
        known = {
            name: (place, recipe) for name, place, recipe in method_folders(self.recipe, folder)
        }
        if request.method not in known:
            there = ", ".join(known)
            raise RefusalError(f"the recipe has no method {request.method!r}, only {there}")
        place, recipe = known[request.method]
        return Method(place, recipe, build_algorithm(recipe))

    def longest_request(self) -> int:
        """The bytes that a question of this client's server has at most."""
        algorithms = [
            build_algorithm(recipe) for _, _, recipe in method_folders(self.recipe, self.folder)
        ]
        return longest_request(algorithms, self._first())

    def _begin(self, request: Request) -> Course:
        method = self._method(request)
        folder, recipe = method.folder, method.recipe
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if parts := changed_parts(folder, self.bench):
            raise RefusalError(
                f"this client's {', '.join(parts)} changed since the run began: restore what it "
                "began with, or begin another run"
            )
        examples = client_examples(self.bench, recipe, folder, self.reporter, self.folder)
        engine = InProcess(
            self.bench,
            recipe,
            examples,
            ClientStore(folder / "clients"),
            self.reporter,
            noise_seed(recipe, folder),
        )
        return Course(folder, recipe, method.algorithm, engine)


def _told(recipe: Recipe, metrics: Metrics) -> Mapping[str, Mean]:
    """Means as they may be told: their weights count held-out records and tokens."""
    return dict(metrics) if recipe.federation.sample_counts else unweighted(metrics)


OPERATIONS: Final[Mapping[Operation, Callable[[ClientSide, Request, Answer], Answer]]] = {
    "prepare": ClientSide._prepare,
    "fit": ClientSide._fit,
    "evaluate": ClientSide._evaluate,
    "finish": ClientSide._finish,
}
