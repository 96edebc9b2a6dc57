"""The client's side: carries out what its own server asks of it, and nothing else.

Whatever program carries the messages, only these operations exist, on this client's own recipe,
data and private folder, for requests that the server's key has signed:

hello      say which model and version this is
prepare    rewrite the records, where the method asks for it
fit        the client half of the algorithm, once a round
evaluate   judge a global model by the held-out records
finish     write the client's own model, and judge it

A request that comes again, after a crash on either side, is answered by the same bytes: an answer
is on disk before it is sent, and the question in the journal (`fedsdr.deploy.client.journal`).
A round that is over stays over, and one whose update did not count, being late or refused,
leaves no trace: the next begins from the state of the last that did. docs/protocol.md has all of
it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedsdr import __version__
from fedsdr.algorithms.contract import Algorithm, Personal
from fedsdr.algorithms.privacy import with_failures_hidden
from fedsdr.core import files
from fedsdr.core.adapters import Adapter, unwrap_private
from fedsdr.core.layout import CLIENTS_FOLDER, PERSONAL_FILE
from fedsdr.core.metrics import metric_values
from fedsdr.core.progress import Reporter
from fedsdr.data.partition import data_fingerprint
from fedsdr.deploy.client.begun import changed_parts
from fedsdr.deploy.client.journal import RefusalError, RequestJournal
from fedsdr.deploy.client.ledger import BudgetError, Ledger, UpdateKey, ledger_begun
from fedsdr.deploy.client.questions import check_question, longest_request
from fedsdr.deploy.protocol.agreement import agreed_keys, agreement_digest
from fedsdr.deploy.protocol.egress import (
    Audit,
    UndeclaredError,
    allowed_contents,
    check_declared,
    check_tensors,
    without_undeclared,
)
from fedsdr.deploy.protocol.messages import (
    LONGEST,
    Answer,
    Operation,
    Request,
    WireError,
    decode_request,
    encode_message,
    printable_text,
)
from fedsdr.deploy.protocol.signing import (
    SignatureVerifier,
    Signer,
    Unsigned,
    message_digest,
    open_sealed,
    seal_payload,
)
from fedsdr.federation.in_process import InProcess
from fedsdr.federation.rounds import Participant
from fedsdr.federation.workbench import Workbench
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.training.store import ClientStore
from fedsdr.workflows.method import client_examples, finish_client, noise_secret
from fedsdr.workflows.run_folder import method_folders

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
        server: SignatureVerifier,
    ) -> None:
        """bench: with this client's records alone. folder: private, all that is kept lies in it.

        key: of this client. server: of the one whose requests are carried out. Both are
        `UNSIGNED` in a simulation.
        """
        assert isinstance(key, Unsigned) == isinstance(server, Unsigned)
        self.bench, self.recipe, self.client = bench, recipe, client
        self.folder, self.reporter = folder, reporter
        self.key, self.server = key, server
        files.make_folder(folder, private=True)
        self.audit, self.journal = Audit(folder), RequestJournal(folder)
        self.ledger, self.data = Ledger(folder, recipe.privacy), data_fingerprint(bench.clients)
        if ledger_begun(folder):
            # A crash may have left lines that the journal does not know, or the owner put a copy.
            self.journal.note_ledger(self.ledger.mark())
            reporter.say(f"{client}: privacy: {self.ledger.describe()}")
        found = method_folders(recipe, Path())
        self._methods = {name: (place, each) for name, place, each in found}
        self._courses: dict[tuple[str, str], Course] = {}

    def __call__(self, data: bytes) -> bytes:
        """Carry out a sealed request. Raises `WireError` for what no server of ours has sent."""
        try:
            payload = open_sealed(data, self.server)
            request = decode_request(payload)
            if request.operation != "hello" and request.journal != self.journal.name:
                raise WireError("a question for another journal: the server has to greet first")
        except WireError as error:
            self.audit.refused(str(error))
            raise
        answer, sent = self._answer(request, message_digest(payload))
        self.audit.sent(answer, sent, message_digest(sent))
        return seal_payload(sent, self.key)

    def _answer(self, request: Request, name: str) -> tuple[Answer, bytes]:
        """An answer and its bytes: whatever goes wrong, there is one, and it quotes no data."""
        place = (request.operation, request.run, self.client, request.method, request.round)
        blank = Answer(*place, request=name)
        try:
            self._check(request)
            answer = self._carried_out(request, blank, name)
            return answer, encode_message(answer)
        except Exception as error:
            refusal = _refusal(blank, error)
            return refusal, encode_message(refusal)

    def _check(self, request: Request) -> None:
        """Raise `RefusalError` unless the request is for this client and its recipe."""
        if request.operation == "hello":  # whose answer tells who this is, and what differs
            return
        if request.client != self.client:
            raise RefusalError(f"this is client {self.client!r}, not {request.client!r}")
        if request.recipe != agreement_digest(self.recipe):
            raise RefusalError(
                "this client's recipe is not the server's: restart both with the same"
            )

    def _carried_out(self, request: Request, blank: Answer, name: str) -> Answer:
        """The answer to a question, kept and entered; that of an earlier time, if there was one."""
        if request.operation == "hello":
            answer = self._hello(request, blank)
            check_declared(answer, self.recipe)
            return answer
        method = self._method(request)
        check_question(request, method.recipe, method.algorithm, self._first())
        if (before := self.journal.recall(request, name, method.folder)) is not None:
            return before
        release = method.recipe.privacy
        update = UpdateKey(request.run, request.method, request.round, name)
        counted = (
            release.mode != "none" and allowed_contents(request.operation, method.recipe).change
        )
        if counted:
            self.ledger.check(release, update)  # before any work
        OPENINGS[request.operation](self, request)  # what fails here may be asked again
        try:
            answer = without_undeclared(
                OPERATIONS[request.operation](self, request, blank), method.recipe
            )
            check_declared(answer, method.recipe)
        except Exception as error:  # the work is done, and failed: that is the answer
            answer = _refusal(blank, error)
        released = None
        if counted:  # before the answer is written, and so before it leaves
            released = self.ledger.charge(release, update, self.data)
            log.info("privacy: %s", self.ledger.describe())
        self.journal.enter(request, name, method.folder, answer, released)
        return answer

    # --- Operations

    def _hello(self, request: Request, blank: Answer) -> Answer:
        mine = agreed_keys(self.recipe)
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

    def _may_evaluate(self, request: Request) -> None:
        recipe = self._method(request).recipe
        if not allowed_contents("evaluate", recipe).metrics:
            raise RefusalError(
                f"under privacy.mode = {recipe.privacy.mode!r} no held-out score leaves a client"
            )

    def _prepare(self, request: Request, blank: Answer) -> Answer:
        course = self._course(request)
        return replace(blank, weight=float(len(course.engine.examples[self.client]["raw"])))

    def _fit(self, request: Request, blank: Answer) -> Answer:
        course = self._course(request)
        engine = course.engine
        engine.rewind(self.client, request.counted)
        simulated = course.recipe.privacy.noise_seed is not None  # as `fedsdr run` would draw it
        [participant] = engine.run_round(
            course.algorithm, request.shared, request.round, [self.client],
            "" if simulated else blank.request,
        )  # fmt: skip
        assert isinstance(participant, Participant)
        update = participant.update
        answer = replace(
            blank, change=update.change, weight=update.weight, metrics=dict(update.metrics)
        )
        kept = engine.state(self.client, request.round).private.values()
        check_declared(answer, course.recipe, [unwrap_private(private) for private in kept])
        check_tensors(answer, course.algorithm, self._first())
        return answer

    def _first(self) -> Adapter:
        """An adapter of this client's model, by which the algorithm says what updates are like."""
        return self.bench.first_adapter(self.recipe.seed)

    def _evaluate(self, request: Request, blank: Answer) -> Answer:
        self.bench.use(Personal(request.shared))
        return replace(blank, metrics=self.bench.evaluator.global_model())

    def _finish(self, request: Request, blank: Answer) -> Answer:
        course = self._course(request)
        course.engine.commit(request.counted, [self.client])
        own = finish_client(
            course.engine, course.algorithm, request.shared, self.client, request.counted
        )
        path = course.folder / PERSONAL_FILE  # for its owner: the answer may have to leave it out
        files.write_json(path, {self.client: metric_values(own)}, private=True)
        return replace(blank, metrics=own)

    # --- What is kept from request to request

    def _course(self, request: Request) -> Course:
        """The method of a run; its records are rewritten the first time."""
        place = (request.run, request.method)
        if place not in self._courses:
            of_run = {each: c for each, c in self._courses.items() if each[0] == request.run}
            self._courses = {**of_run, place: self._begin(request)}
        return self._courses[place]

    def _method(self, request: Request) -> Method:
        if request.method not in self._methods:
            there = ", ".join(self._methods)
            raise RefusalError(f"the recipe has no method {request.method!r}, only {there}")
        place, recipe = self._methods[request.method]
        folder = self.folder / RUNS / request.run / place
        return Method(folder, recipe, build_algorithm(recipe, before_privacy=self._hiding))

    def _hiding(self, algorithm: Algorithm) -> Algorithm:
        return with_failures_hidden(
            algorithm, self._first(), lambda error: log.error("training failed", exc_info=error)
        )

    def longest_request(self) -> int:
        """The bytes that a question of this client's server has at most."""
        algorithms = [build_algorithm(recipe) for _, recipe in self._methods.values()]
        return longest_request(algorithms, self._first())

    def _begin(self, request: Request) -> Course:
        method = self._method(request)
        folder, recipe = method.folder, method.recipe
        if recipe.privacy.mode != "none" and recipe.federation.rounds and not folder.exists():
            self.ledger.check(recipe.privacy)  # before hours of rewriting
        files.make_folder(folder, private=True)
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
            ClientStore(folder / CLIENTS_FOLDER),
            self.reporter,
            noise_secret(recipe, folder),
        )
        return Course(folder, recipe, method.algorithm, engine)


def _refusal(blank: Answer, error: Exception) -> Answer:
    """The answer that says that there is none, and why, where that quotes no data."""
    if isinstance(error, RefusalError | UndeclaredError | BudgetError):
        log.error("refused: %s", error)
        return replace(blank, refused=printable_text(str(error))[:LONGEST])
    log.error("%s of round %d failed", blank.operation, blank.round, exc_info=error)
    return replace(blank, refused="failed for a reason that its own log tells")


OPENINGS: Final[Mapping[Operation, Callable[[ClientSide, Request], object]]] = {
    "prepare": ClientSide._course,
    "fit": ClientSide._course,
    "evaluate": ClientSide._may_evaluate,
    "finish": ClientSide._course,
}
OPERATIONS: Final[Mapping[Operation, Callable[[ClientSide, Request, Answer], Answer]]] = {
    "prepare": ClientSide._prepare,
    "fit": ClientSide._fit,
    "evaluate": ClientSide._evaluate,
    "finish": ClientSide._finish,
}
