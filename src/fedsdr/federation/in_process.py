"""The in-process engine: clients run one after another, or several at once, on one model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Round,
    Stage,
    Targets,
    Update,
)
from fedsdr.core import seeds
from fedsdr.core.adapters import Adapter
from fedsdr.core.progress import Reporter
from fedsdr.data.template import Example
from fedsdr.federation.cohort_size import best_cohort
from fedsdr.federation.lockstep import run_together
from fedsdr.federation.rounds import Participant
from fedsdr.federation.workbench import Workbench
from fedsdr.model.trials import pads_rightly, passes_trial
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.training.annealing import Annealing
from fedsdr.training.cohort import train_cohort
from fedsdr.training.local import LocalTrainer
from fedsdr.training.store import ClientStore

Examples = Mapping[str, Mapping[Targets, Sequence[Example]]]  # client -> targets -> examples
Kept = tuple[Update, ClientState]  # what a client half gives back


class InProcess:
    """Runs client halves here; each client's private state lives in its own folder."""

    def __init__(
        self,
        bench: Workbench,
        recipe: Recipe,
        examples: Examples,
        store: ClientStore,
        reporter: Reporter,
        secret: bytes = b"",
    ) -> None:
        """`secret`: what the clients' noise is drawn from, where the recipe asks for noise."""
        self.bench, self.recipe, self.examples = bench, recipe, examples
        self.store, self.reporter, self.secret = store, reporter, secret

    def clients(self) -> Sequence[str]:
        return list(self.examples)

    def population(self) -> float:
        """All clients' records, those who come late included; one each where these are private."""
        if self.recipe.privacy.mode != "none" or not self.recipe.federation.sample_counts:
            return float(len(self.examples))
        return float(sum(len(each["raw"]) for each in self.examples.values()))

    def run_round(
        self,
        algorithm: Algorithm,
        shared: Adapter,
        round: int,
        cohort: Sequence[str],
        question: str = "",
    ) -> Iterator[Participant]:
        """As of `Engine`. question: digest of what a client was asked, so that its noise is of no
        other question: the difference of two answers with one noise would have none."""
        with self.reporter.bar(f"  round {round}: clients", len(cohort), keep=False) as bar:
            for names in chunked_names(cohort, self.at_once):
                for client, (update, state) in self._run(
                    algorithm, shared, round, names, question
                ).items():
                    self.store.save(client, round, state)
                    yield Participant(client, update)
                    bar.advance(note=client)

    def _run(
        self,
        algorithm: Algorithm,
        shared: Adapter,
        round: int,
        names: Sequence[str],
        question: str,
    ) -> dict[str, Kept]:
        """The client halves of some clients; what many ask to be trained is trained at once."""

        def half(client: str, state: ClientState) -> Callable[[Fit], Kept]:
            own = Round(
                round,
                seeds.derive_seed(self.recipe.seed, "client", round, client),
                secret=seeds.derive_secret(self.secret, "client", round, client, question),
            )
            return lambda fit: algorithm.client(shared, state, fit, own)

        trainers = {client: self.trainer(client, round) for client in names}
        halves = {client: half(client, self.state(client, round - 1)) for client in names}
        if len(names) == 1:
            return {client: work(trainers[client]) for client, work in halves.items()}

        def train(asked: Mapping[str, Stage]) -> dict[str, Fitted]:
            fitted = train_cohort([trainers[client] for client in asked], list(asked.values()))
            return dict(zip(asked, fitted, strict=True))

        return run_together(halves, train)

    @cached_property
    def at_once(self) -> int:
        """How many clients are trained at once; one where their texts cannot be padded."""
        wanted = self.recipe.local.cohort
        if not passes_trial(self.bench.base.model, pads_rightly):
            return 1
        if wanted != "auto":
            return wanted
        kinds = [each for kinds in self.examples.values() for each in kinds.values()]
        lengths = [len(example) for each in kinds for example in each]
        return best_cohort(self.bench, self.recipe, lengths)

    def trainer(self, client: str, round: int) -> LocalTrainer:
        local = self.recipe.local
        return LocalTrainer(
            self.bench.model,
            self.examples[client],
            client=client,
            round=round,
            seed=self.recipe.seed,
            batch_size=local.batch_size,
            clip=local.clip,
            weight_decay=local.weight_decay,
            pad=self.bench.base.pad,
            smoothing_rank=self.recipe.lora.smoothing_rank,
            micro_batch=local.micro_batch,
            annealing=Annealing(local.schedule, local.final_lr, self.recipe.federation.rounds),
            checkpointing=self.recipe.model.gradient_checkpointing,
            dropout=self.recipe.lora.dropout,
        )

    def commit(self, round: int, cohort: Sequence[str]) -> None:
        for client in cohort:
            self.store.prune(client, round)

    def rewind(self, client: str, round: int) -> None:
        """The last round of a client that counted is `round`: later ones left no trace."""
        self.store.prune(client, round)
        self.store.discard(client, round)

    def state(self, client: str, round: int) -> ClientState:
        """What the client kept of the rounds up to `round`."""
        state = self.store.load(client, committed=round)
        return replace(state, rank=self.recipe.lora.ranks.get(client))


def chunked_names(names: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """The names, at most `size` at a time (`itertools.batched` of Python 3.12)."""
    rest = iter(names)
    while some := tuple(islice(rest, size)):
        yield some
