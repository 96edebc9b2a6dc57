"""The engine across organisations: client halves run where the data are."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedsdr.algorithms.contract import Algorithm, Update
from fedsdr.core import files
from fedsdr.core.adapters import Adapter
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Metrics, merge_all
from fedsdr.core.progress import Reporter
from fedsdr.deploy.protocol.egress import allowed_contents
from fedsdr.deploy.protocol.messages import Answer, Operation, Request
from fedsdr.deploy.server.switchboard import Switchboard
from fedsdr.federation.rounds import Absent, Participant
from fedsdr.recipe.sections.recipe import Recipe

WEIGHTS_FILE: Final = "weights.json"
OUTCOME_FILE: Final = "round.json"  # who gave no update in the round that is not committed yet


class Remote:
    """Asks the clients of a switchboard, for one of the recipe's methods."""

    def __init__(
        self,
        switchboard: Switchboard,
        recipe: Recipe,
        method: str,
        reporter: Reporter,
        folder: Path,
    ) -> None:
        """folder: of the method's run, at the server; what each client's updates weigh, as it first
        said, is in it."""
        self.switchboard, self.recipe, self.method = switchboard, recipe, method
        self.reporter, self.deployment = reporter, recipe.deployment
        self.weights_file = folder / WEIGHTS_FILE
        known = self.weights_file.exists()
        self.weights: dict[str, float] = files.read_json(self.weights_file) if known else {}
        self.counted: dict[str, int] = {}  # the last round that each client had a part in
        self._outcome, self._round = folder / OUTCOME_FILE, 0

    def clients(self) -> Sequence[str]:
        return list(self.switchboard.roster)

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
            answers = self.switchboard.ask(asked, question, seconds, self.counted)
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
        told = files.read_json(self._outcome)
        return dict(told["absent"]) if told["round"] == round else None

    def commit(self, round: int, cohort: Sequence[str]) -> None:
        """Clients learn of it by the next round's request."""

    def count(self, row: Mapping[str, Any]) -> None:
        """A committed line of the log: whose updates were aggregated."""
        self.counted |= dict.fromkeys(row.get("clients", []), row["round"])

    def evaluate(self, deployed: Adapter) -> Metrics:
        """The global model, judged by every client that answers on its own held-out records."""
        judged = self._all("evaluate", deployed, self._round, self.deployment.round_seconds)
        return merge_all(answer.metrics for answer in judged.values())

    def finish(self, shared: Adapter) -> Mapping[str, Metrics]:
        """Have every client write its own model; returns what each says of it."""
        rounds = self.recipe.federation.rounds
        told = self._all("finish", shared, rounds, self.deployment.round_seconds)
        return {client: answer.metrics for client, answer in told.items()}

    def _all(
        self, operation: Operation, shared: Adapter, round: int, seconds: float
    ) -> dict[str, Answer]:
        """The answers of all clients that give one. Raises `UserError` where these are too few."""
        question = self._question(operation, shared, round)
        answers = list(self.switchboard.ask(self.clients(), question, seconds, self.counted))
        absent = {each.client: each.reason for each in answers if isinstance(each, Absent)}
        told = "; ".join(f"{client}: {reason}" for client, reason in absent.items())
        needed = min(self.deployment.min_clients, len(answers))
        if len(answers) - len(absent) < needed:
            raise UserError(
                f"{operation} needs the answers of {needed} of {len(answers)} clients, and "
                f"{len(absent)} gave none ({told})"
            )
        if absent:
            self.reporter.say(f"{operation}: without {told}")
        return {each.client: each for each in answers if isinstance(each, Answer)}

    def _question(self, operation: Operation, shared: Adapter, round: int) -> Request:
        request = Request(operation, "-", "-", "-", self.method, round, shared)
        return self.switchboard.question(request)

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
