"""The in-process engine: clients run one after another on the workbench's one model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fedsdr import seeds
from fedsdr.adapters import Adapter
from fedsdr.algorithms.contract import Algorithm, ClientState, Round, Targets
from fedsdr.data.template import Example
from fedsdr.engines.workbench import Workbench
from fedsdr.progress import Reporter
from fedsdr.sections.recipe import Recipe
from fedsdr.training.annealing import Annealing
from fedsdr.training.local import LocalTrainer
from fedsdr.training.rounds import Participant
from fedsdr.training.store import ClientStore

Examples = Mapping[str, Mapping[Targets, Sequence[Example]]]  # client -> targets -> examples


class InProcess:
    """Runs client halves here; each client's private state lives in its own folder."""

    def __init__(
        self,
        bench: Workbench,
        recipe: Recipe,
        examples: Examples,
        store: ClientStore,
        reporter: Reporter,
        secret: int = 0,
    ) -> None:
        """`secret`: the seed of the clients' own randomness, the noise of privacy above all."""
        self.bench, self.recipe, self.examples = bench, recipe, examples
        self.store, self.reporter, self.secret = store, reporter, secret

    def clients(self) -> Sequence[str]:
        return list(self.examples)

    def run_round(
        self, algorithm: Algorithm, shared: Adapter, round: int, cohort: Sequence[str]
    ) -> Iterator[Participant]:
        with self.reporter.bar(f"  round {round}: clients", len(cohort), keep=False) as bar:
            for client in cohort:
                state = self.state(client, round - 1)
                own = Round(round, seeds.derive(self.secret, "client", round, client))
                update, state = algorithm.client(shared, state, self.trainer(client, round), own)
                self.store.save(client, round, state)
                yield Participant(client, update)
                bar.advance(note=client)

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
        )

    def commit(self, round: int, cohort: Sequence[str]) -> None:
        for client in cohort:
            self.store.prune(client, round)

    def state(self, client: str, round: int) -> ClientState:
        """What the client kept of the rounds up to `round`."""
        state = self.store.load(client, committed=round)
        return replace(state, rank=self.recipe.lora.ranks.get(client))
