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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from fedsdr import __version__
from fedsdr.algorithms.contract import Algorithm, Personal
from fedsdr.algorithms.privacy import with_failures_hidden
from fedsdr.core import files
from fedsdr.core.adapters import Adapter, unwrap_private
from fedsdr.core.layout import PERSONAL_FILE
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
from fedsdr.deploy.protocol.wire import WireError
from fedsdr.federation.in_process import InProcessEngine
from fedsdr.federation.loaded import LoadedRun
from fedsdr.federation.rounds import Participant
from fedsdr.model.install import first_adapter, install_model
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.methods import Method
from fedsdr.workflows.method import client_examples, noise_secret

RUNS: Final = "runs"

log = logging.getLogger(__name__)


class ClientKeys(NamedTuple):
    """own: what this client signs by. server: of the one whose requests are carried out. Both are
    `UNSIGNED` in a simulation."""

    own: Signer
    server: SignatureVerifier


class ClientSide:
    """One client of a federation: `client(request) -> answer`, both as sealed bytes."""

    def __init__(
        self,
        loaded: LoadedRun,
        methods: Sequence[Method],
        client: str,
        folder: Path,
        keys: ClientKeys,
        reporter: Reporter,
    ) -> None:
        """loaded: with this client's records alone. folder: private, everything is kept in it."""
        self.key, self.server = keys
        assert isinstance(self.key, Unsigned) == isinstance(self.server, Unsigned)
        self.loaded, self.recipe, self.client = loaded, methods[-1].recipe, client
        self.folder, self.reporter = folder, reporter
        files.make_folder(folder, private=True)
        self.audit, self.journal = Audit(folder), RequestJournal(folder)
        self.ledger = Ledger(folder, self.recipe.privacy)
        self.data = data_fingerprint(loaded.clients)
        if ledger_begun(folder):
            # A crash may have left lines that the journal does not know, or the owner put a copy.
            self.journal.note_ledger(self.ledger.mark())
            reporter.say(f"{client}: privacy: {self.ledger.describe()}")
        self._methods = {method.name: self._hiding_failures(method) for method in methods}
        self._engines: dict[tuple[str, str], InProcessEngine] = {}  # by run and method

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
        facts = {"model": self.loaded.fingerprint, "fedsdr": __version__}
        return replace(blank, facts={**facts, "journal": self.journal.name})

    def _may_evaluate(self, request: Request) -> None:
        recipe = self._method(request).recipe
        if not allowed_contents("evaluate", recipe).metrics:
            raise RefusalError(
                f"under privacy.mode = {recipe.privacy.mode!r} no held-out score leaves a client"
            )

    def _prepare(self, request: Request, blank: Answer) -> Answer:
        engine = self._engine(request)
        return replace(blank, weight=float(len(engine.examples[self.client]["raw"])))

    def _fit(self, request: Request, blank: Answer) -> Answer:
        engine = self._engine(request)
        recipe, algorithm = engine.method.recipe, engine.method.algorithm
        engine.rewind(self.client, request.counted)
        simulated = recipe.privacy.noise_seed is not None  # as `fedsdr run` would draw it
        [participant] = engine.run_round(
            algorithm, request.shared, request.round, [self.client],
            "" if simulated else blank.request,
        )  # fmt: skip
        assert isinstance(participant, Participant)
        update = participant.update
        answer = replace(
            blank, change=update.change, weight=update.weight, metrics=dict(update.metrics)
        )
        kept = engine.state(self.client, request.round).private.values()
        check_declared(answer, recipe, [unwrap_private(private) for private in kept])
        check_tensors(answer, algorithm, self._first())
        return answer

    def _first(self) -> Adapter:
        """An adapter of this client's model, by which the algorithm says what updates are like."""
        return first_adapter(self.loaded.model, self.recipe.seed)

    def _evaluate(self, request: Request, blank: Answer) -> Answer:
        install_model(self.loaded.model, Personal(request.shared))
        return replace(blank, metrics=self.loaded.evaluator.global_model())

    def _finish(self, request: Request, blank: Answer) -> Answer:
        engine = self._engine(request)
        engine.commit(request.counted, [self.client])
        own = engine.personal_model(self.client, request.shared, request.counted)
        engine.write_personal(self.client, own)
        metrics = engine.judge_personal(self.client, own)
        path = engine.method.folder / PERSONAL_FILE  # its owner's: the answer may have to omit it
        files.write_json(path, {self.client: metric_values(metrics)}, private=True)
        return replace(blank, metrics=metrics)

    # --- What is kept from request to request

    def _engine(self, request: Request) -> InProcessEngine:
        """Of the method of a run; its records are rewritten the first time."""
        place = (request.run, request.method)
        if place not in self._engines:
            of_run = {each: e for each, e in self._engines.items() if each[0] == request.run}
            self._engines = {**of_run, place: self._begin(request)}
        return self._engines[place]

    def _method(self, request: Request) -> Method:
        """The method that is asked for, in the folder of the run."""
        if request.method not in self._methods:
            there = ", ".join(self._methods)
            raise RefusalError(f"the recipe has no method {request.method!r}, only {there}")
        return self._methods[request.method].within(self.folder / RUNS / request.run)

    def _hiding_failures(self, method: Method) -> Method:
        """The method, whose updates under differential privacy do not show that training failed."""

        def hide(algorithm: Algorithm) -> Algorithm:
            return with_failures_hidden(
                algorithm, self._first(), lambda error: log.error("training failed", exc_info=error)
            )

        return replace(method, algorithm=build_algorithm(method.recipe, before_privacy=hide))

    def longest_request(self) -> int:
        """The bytes that a question of this client's server has at most."""
        algorithms = [method.algorithm for method in self._methods.values()]
        return longest_request(algorithms, self._first())

    def _begin(self, request: Request) -> InProcessEngine:
        method = self._method(request)
        folder, recipe = method.folder, method.recipe
        if recipe.privacy.mode != "none" and recipe.federation.rounds and not folder.exists():
            self.ledger.check(recipe.privacy)  # before hours of rewriting
        files.make_folder(folder, private=True)
        if parts := changed_parts(folder, self.loaded):
            raise RefusalError(
                f"this client's {', '.join(parts)} changed since the run began: restore what it "
                "began with, or begin another run"
            )
        examples = client_examples(self.loaded, method, self.reporter, self.folder)
        return InProcessEngine(self.loaded, method, examples, self.reporter, noise_secret(method))


def _refusal(blank: Answer, error: Exception) -> Answer:
    """The answer that says that there is none, and why, where that quotes no data."""
    if isinstance(error, RefusalError | UndeclaredError | BudgetError):
        log.error("refused: %s", error)
        return replace(blank, refused=printable_text(str(error))[:LONGEST])
    log.error("%s of round %d failed", blank.operation, blank.round, exc_info=error)
    return replace(blank, refused="failed for a reason that its own log tells")


OPENINGS: Final[Mapping[Operation, Callable[[ClientSide, Request], object]]] = {
    "prepare": ClientSide._engine,
    "fit": ClientSide._engine,
    "evaluate": ClientSide._may_evaluate,
    "finish": ClientSide._engine,
}
OPERATIONS: Final[Mapping[Operation, Callable[[ClientSide, Request, Answer], Answer]]] = {
    "prepare": ClientSide._prepare,
    "fit": ClientSide._fit,
    "evaluate": ClientSide._evaluate,
    "finish": ClientSide._finish,
}
