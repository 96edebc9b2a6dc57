"""The in-process engine: clients run one after another, or several at once, on one model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Personal,
    Round,
    Stage,
    Update,
)
from fedsdr.core import seeds
from fedsdr.core.adapters import Adapter, unwrap_private
from fedsdr.core.layout import CLIENTS_FOLDER, PERSONAL_ADAPTER, SMOOTHING_ADAPTER
from fedsdr.core.metrics import Metrics
from fedsdr.core.progress import Reporter
from fedsdr.data.example import Example, ExampleKind
from fedsdr.data.partition import pool_clients
from fedsdr.distillation.verify import build_verifier
from fedsdr.federation.cohort_size import best_cohort
from fedsdr.federation.loaded import LoadedRun
from fedsdr.federation.lockstep import run_together
from fedsdr.federation.rounds import Participant, Periodic
from fedsdr.model.install import first_adapter, install_model, rectification_adapter
from fedsdr.model.peft_format import AdapterSettings, write_adapter
from fedsdr.model.trials import pads_rightly, passes_trial
from fedsdr.recipe.methods import Method
from fedsdr.training.annealing import Annealing
from fedsdr.training.cohort import train_cohort
from fedsdr.training.local import LocalTrainer
from fedsdr.training.on_policy import OnPolicySampler
from fedsdr.training.store import ClientStore

Examples = Mapping[str, Mapping[ExampleKind, Sequence[Example]]]  # client -> kind -> examples
Kept = tuple[Update, ClientState]  # what a client half gives back


class InProcessEngine:
    """Runs client halves here; each client's private state lies in its folder of the method's."""

    quorum: int | None = None  # a client half that fails here is an error

    def __init__(
        self,
        loaded: LoadedRun,
        method: Method,
        examples: Examples,
        reporter: Reporter,
        secret: bytes = b"",
    ) -> None:
        """secret: what the clients' noise is drawn from, where the recipe asks for noise."""
        self.loaded, self.method, self.examples = loaded, method, examples
        self.recipe, self.reporter, self.secret = method.recipe, reporter, secret
        self.store = ClientStore(method.folder / CLIENTS_FOLDER)

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
        if not passes_trial(self.loaded.base.model, pads_rightly):
            return 1
        if wanted != "auto":
            return wanted
        kinds = [each for kinds in self.examples.values() for each in kinds.values()]
        lengths = [len(example) for each in kinds for example in each]
        return best_cohort(self.loaded, self.recipe, lengths)

    def trainer(self, client: str, round: int) -> LocalTrainer:
        local = self.recipe.local
        return LocalTrainer(
            self.loaded.model,
            self.examples[client],
            client=client,
            round=round,
            seed=self.recipe.seed,
            batch_size=local.batch_size,
            clip=local.clip,
            weight_decay=local.weight_decay,
            pad=self.loaded.base.pad,
            smoothing_rank=self.recipe.lora.smoothing_rank,
            micro_batch=local.micro_batch,
            annealing=Annealing(local.schedule, local.final_lr, self.recipe.federation.rounds),
            checkpointing=self.recipe.model.gradient_checkpointing,
            dropout=self.recipe.lora.dropout,
            sampler=self.samplers.get(client),
            rehearsed=self.recipe.rehearsal.examples(local.batch_size),
        )

    @cached_property
    def samplers(self) -> Mapping[str, OnPolicySampler]:
        """Of each client's responses, where the recipe learns on policy."""
        recipe, clients = self.recipe, self.loaded.clients
        if "on_policy" not in recipe.losses:
            return {}
        if recipe.federation.pooled:
            clients = [pool_clients(clients)]
        verifier = build_verifier(recipe.distill, recipe.seed, recipe.model.device)
        chat, rows = self.loaded.base.chat, recipe.distill.batch_size
        return {c.name: OnPolicySampler(chat, verifier.gate(c.train), rows) for c in clients}

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

    # --- Before the rounds and after them

    @property
    def settings(self) -> AdapterSettings:
        return self.loaded.adapter_settings

    def first_adapter(self) -> Adapter:
        return first_adapter(self.loaded.model, self.recipe.seed)

    def evaluate(self, deployed: Adapter) -> Metrics:
        """Judge the global model."""
        return self.loaded.judge(deployed)

    @property
    def benchmark(self) -> Periodic | None:
        if not self.loaded.benchmarks:
            return None
        return Periodic(
            self.recipe.evaluate.benchmark_every,
            lambda deployed: self.loaded.benchmark(deployed, self.method.name),
        )

    def observe(self, row: Mapping[str, Any]) -> None:
        """Clients here learn of a committed round by `commit`."""

    def deliver(self, shared: Adapter) -> None:
        """Write every client's own adapters. shared: the last broadcast."""
        for client in self.clients():
            self.write_personal(client, self.personal_model(client, shared))

    def finish(self, shared: Adapter) -> Mapping[str, Metrics]:
        """Judge every client's own model; {} for each where the recipe does not ask."""
        return {
            client: self.judge_personal(client, self.personal_model(client, shared))
            for client in self.clients()
        }

    def personal_model(self, client: str, shared: Adapter, counted: int | None = None) -> Personal:
        """A client's own model at the end. counted: the last of the client's rounds that counted,
        the last round of all by default."""
        last = self.recipe.federation.rounds if counted is None else counted
        return self.method.algorithm.personal(shared, self.state(client, last))

    def write_personal(self, client: str, own: Personal) -> None:
        """Write a client's own adapters into its folder."""
        mine = {
            PERSONAL_ADAPTER: rectification_adapter(own) if own.own else {},
            SMOOTHING_ADAPTER: unwrap_private(own.private),
        }
        for place, adapter in mine.items():
            if adapter:
                target = self.store.client_folder(client) / place
                write_adapter(target, adapter, self.settings, private=True)

    def judge_personal(self, client: str, own: Personal) -> Metrics:
        """The metrics of a client's own model; {} where the recipe does not ask for them."""
        if not self.recipe.evaluate.personal or self.recipe.federation.pooled:
            return {}
        install_model(self.loaded.model, own)
        return self.loaded.evaluator.personal_model(client)


def chunked_names(names: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """The names, at most `size` at a time (`itertools.batched` of Python 3.12)."""
    rest = iter(names)
    while some := tuple(islice(rest, size)):
        yield some
