"""The engine across organisations: client halves run where the data are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fedsdr.algorithms.contract import Algorithm, Update
from fedsdr.core import files
from fedsdr.core.adapters import Adapter
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Metrics, merge_all
from fedsdr.core.progress import Reporter
from fedsdr.deploy.protocol.egress import allowed_contents
from fedsdr.deploy.protocol.messages import Answer, Operation, Request
from fedsdr.deploy.server.dispatcher import RequestDispatcher
from fedsdr.federation.rounds import Absent, Evaluation, Participant
from fedsdr.model.install import first_adapter
from fedsdr.model.lora import TwoStreamModel
from fedsdr.model.outline import model_outline
from fedsdr.model.peft_format import AdapterSettings, settings_of
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.prepare import plan_folder

WEIGHTS_FILE: Final = "weights.json"
OUTCOME_FILE: Final = "round.json"  # who gave no update in the round that is not committed yet


class AdapterShape(NamedTuple):
    """What a server knows of the model: R^0 and what PEFT must know of it, and no weights."""

    first: Adapter
    settings: AdapterSettings


def adapter_shape(recipe: Recipe, reporter: Reporter) -> AdapterShape:
    """From the model's configuration alone."""
    lora = recipe.lora
    with plan_folder(recipe, reporter) as folder:
        model = TwoStreamModel(
            model_outline(folder), lora.targets, lora.rank, lora.alpha, lora.layers
        )
    settings = settings_of(model, recipe.model.path, lora.dropout)
    return AdapterShape(first_adapter(model, recipe.seed), settings)


class RemoteEngine:
    """Asks the clients of a federation, for one of the recipe's methods."""

    def __init__(
        self,
        dispatcher: RequestDispatcher,
        method: Method,
        shape: AdapterShape,
        reporter: Reporter,
    ) -> None:
        """The method's folder holds what each client's updates weigh, as it said at first."""
        self.dispatcher, self.method, self.recipe = dispatcher, method, method.recipe
        self.shape, self.settings = shape, shape.settings
        self.reporter, self.deployment = reporter, method.recipe.deployment
        self.quorum = self.deployment.min_clients
        self.weights_file = method.folder / WEIGHTS_FILE
        known = self.weights_file.exists()
        self.weights: dict[str, float] = files.read_json(self.weights_file) if known else {}
        self.counted: dict[str, int] = {}  # the last round that each client had a part in
        self._outcome, self._round = method.folder / OUTCOME_FILE, 0

    def clients(self) -> Sequence[str]:
        return list(self.dispatcher.roster)

    def prepare(self) -> None:
        """Have all clients rewrite, and note the weight of each that is ready."""
        ready = self._all("prepare", {}, 0, self.deployment.prepare_seconds)
        self._note({client: self._weight(answer) for client, answer in ready.items()})

    def population(self) -> float:
        """Of those that were ready, and of those that first answered in a round."""
        return sum(self.weights.values())

    def run_round(
        self, algorithm: Algorithm, shared: Adapter, round: int, cohort: Sequence[str]
    ) -> Iterator[Participant | Absent]:
        """As in any engine. A round that is run again, the server having died before it was
        committed, is without the clients that it was without the first time: the others may have
        judged its model, and judge no other one."""
        self._round = round
        question, before = self._question("fit", shared, round), self._absent_before(round)
        absent = dict(before or {})
        asked = [client for client in cohort if client not in absent]
        with self.reporter.bar(f"  round {round}: clients", len(cohort), keep=False) as bar:
            seconds = self.deployment.round_seconds
            answers = self.dispatcher.ask(asked, question, seconds, self.counted)
            for client in cohort:
                given = Absent(client, absent[client]) if client in absent else next(answers)
                bar.advance(note=client)
                if isinstance(given, Absent):
                    absent[client] = given.reason
                    yield given
                else:
                    yield self._participant(given)
        if before is None:
            files.write_json(self._outcome, {"round": round, "absent": absent})

    def _absent_before(self, round: int) -> dict[str, str] | None:
        """Who gave no update when all of a round's were in, and why; None for a new round."""
        if not self._outcome.exists():
            return None
        outcome = files.read_json(self._outcome)
        return dict(outcome["absent"]) if outcome["round"] == round else None

    def commit(self, round: int, cohort: Sequence[str]) -> None:
        """Clients learn of it by the next round's request."""

    def first_adapter(self) -> Adapter:
        return self.shape.first

    def observe(self, row: Mapping[str, Any]) -> None:
        """A committed line of the log says whose updates were aggregated."""
        self.counted |= dict.fromkeys(row.get("clients", []), row["round"])

    @property
    def evaluate(self) -> Evaluation | None:
        """None where clients send no scores."""
        return self.judge_global if allowed_contents("evaluate", self.recipe).metrics else None

    benchmark = None  # the server has no model

    def judge_global(self, deployed: Adapter) -> Metrics:
        """The global model, judged by every client that answers on its own held-out records."""
        judged = self._all("evaluate", deployed, self._round, self.deployment.round_seconds)
        return merge_all(answer.metrics for answer in judged.values())

    def deliver(self, shared: Adapter) -> None:
        """Clients write their own adapters when they are asked to finish."""

    def finish(self, shared: Adapter) -> Mapping[str, Metrics]:
        """Have every client write its own model; returns what each says of it."""
        rounds = self.recipe.federation.rounds
        answers = self._all("finish", shared, rounds, self.deployment.round_seconds)
        return {client: answer.metrics for client, answer in answers.items()}

    def _all(
        self, operation: Operation, shared: Adapter, round: int, seconds: float
    ) -> dict[str, Answer]:
        """The answers of all clients that give one. Raises `UserError` where these are too few."""
        question = self._question(operation, shared, round)
        answers = list(self.dispatcher.ask(self.clients(), question, seconds, self.counted))
        absent = {each.client: each.reason for each in answers if isinstance(each, Absent)}
        reasons = "; ".join(f"{client}: {reason}" for client, reason in absent.items())
        needed = min(self.deployment.min_clients, len(answers))
        if len(answers) - len(absent) < needed:
            raise UserError(
                f"{operation} needs the answers of {needed} of {len(answers)} clients, and "
                f"{len(absent)} gave none ({reasons})"
            )
        if absent:
            self.reporter.say(f"{operation}: without {reasons}")
        return {each.client: each for each in answers if isinstance(each, Answer)}

    def _question(self, operation: Operation, shared: Adapter, round: int) -> Request:
        request = Request(operation, "-", "-", "-", self.method.name, round, shared)
        return self.dispatcher.question(request)

    def _participant(self, answer: Answer) -> Participant | Absent:
        """The update; refused if it does not weigh what the client has said before."""
        self._note({answer.client: self._weight(answer)})
        agreed = self.weights[answer.client]
        if answer.weight != agreed:
            reason = f"its update weighs {answer.weight:g}, and it was prepared for {agreed:g}"
            return Absent(answer.client, reason)
        return Participant(answer.client, Update(answer.change, answer.weight, answer.metrics))

    def _note(self, weights: Mapping[str, float]) -> None:
        """Weights of clients that had none, for good: on disk before a round counts on them."""
        if weights.keys() - self.weights.keys():
            self.weights = {**weights, **self.weights}
            files.write_json(self.weights_file, self.weights)

    def _weight(self, answer: Answer) -> float:
        """A client's number of records; 1 where the recipe does not let it tell that."""
        return answer.weight if allowed_contents("prepare", self.recipe).counts else 1.0
