"""The distillation stage by itself: its pilot, its rewrites, and what is written of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsdr.algorithms.contract import Personal
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    CLIENTS_FOLDER,
    DISTILLATION_FILE,
    DISTILLATION_PAGE,
    FIGURES_FILE,
    REWRITES_FILE,
)
from fedsdr.core.notices import Notice, announce_notices, records_by_client
from fedsdr.core.progress import Reporter
from fedsdr.data.records import ClientData, Record
from fedsdr.diagnosis.distilled import describe_all, describe_client
from fedsdr.distillation.cache import Generations, RewriteCache
from fedsdr.distillation.pilot import Pilot, run_pilot, total_pilot
from fedsdr.distillation.rewrite import (
    Rewritten,
    first_attempts_cached,
    rewrite_records,
    sample_pairs,
    summarise_rewrites,
)
from fedsdr.distillation.teacher import Teacher
from fedsdr.distillation.verify import SLOW, Verifier, build_verifier
from fedsdr.federation.loaded import LoadedRun
from fedsdr.model.identity import identity_digest
from fedsdr.model.install import install_model
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report.distillation import write_client_page, write_overview
from fedsdr.training.store import ClientStore
from fedsdr.workflows.prepare import prepare_run, rewrite_cache
from fedsdr.workflows.run_folder import claim_folder, claimed_folder


def run_distillation(
    recipe: Recipe, out: Path, reporter: Reporter, resume: bool = False, report: bool = False
) -> dict[str, Path]:
    """Rewrite for every method of the recipe that distils; returns method -> its folder.

    Fills the rewrite cache, so that a run of the recipe, in `out` too, does not generate again.
    Raises `UserError` before any work, and before anything is written.
    """
    run = prepare_run(recipe, reporter=reporter)
    stages = [method.within(out) for method in distilling_methods(run.methods)]
    with claimed_folder(out, recipe, resume):
        announce_notices(run.notices, reporter)
        loaded = run.load(reporter)
        claim_folder(out, recipe)
        for method in stages:
            reporter.say(f"distillation of {method.name}")
            rewrites = rewrite_all(loaded, method, reporter)
            record_distillation(method, rewrites)
            if report:
                write_reports(method, rewrites)
    return {method.name: method.folder for method in stages}


def pilot_methods(recipe: Recipe, count: int, reporter: Reporter) -> dict[str, list[Pilot]]:
    """What every kind of rewriting of a recipe would cost, from `count` records a client, by the
    name of its method."""
    run = prepare_run(recipe, reporter=reporter)
    stages = distilling_methods(run.methods)
    check_pilot(count, run.clients)
    loaded = run.load(reporter)
    return {method.name: open_rewriter(loaded, method.recipe).pilot(count) for method in stages}


def describe_outcome(name: str, folder: Path) -> str:
    """What came of it, in a line, and where it lies."""
    clients = files.read_json(folder / DISTILLATION_FILE)["clients"].values()
    rewritten, records = (sum(c[key] for c in clients) for key in ("rewritten", "records"))
    page = folder / DISTILLATION_PAGE
    shown = f"; report: {page}, texts in the clients' own folders" if page.exists() else ""
    return f"{name}: {rewritten} of {records} records rewritten, into {folder}{shown}"


def distilling_methods(methods: Sequence[Method]) -> list[Method]:
    """The methods that rewrite, each kind of rewriting once: the run's own method first.

    Raises `UserError` where none does.
    """
    stages: list[Method] = []
    for method in reversed(methods):
        seen = [other.recipe.distill for other in stages]
        if method.recipe.federation.rewrites and method.recipe.distill not in seen:
            stages.append(method)
    if not stages:
        federation = methods[-1].recipe.federation
        raise UserError(
            f"no method of this recipe rewrites (federation.targets = {federation.targets!r}, "
            f'rounds = {federation.rounds}): set federation.targets = "distilled"'
        )
    return stages


@dataclass(frozen=True)
class Rewriter:
    """The base model as the teacher of each client's records, and the gate for what it writes."""

    teacher: Teacher
    verifier: Verifier
    clients: Sequence[ClientData]
    options: Distill
    seed: int

    def pilot(self, count: int) -> list[Pilot]:
        """A pilot of up to `count` records for each client, then all clients together."""
        found = [
            run_pilot(
                self.teacher, client.name, client.train, self.options, self.seed,
                self.verifier.gate(client.train), min(count, len(client.train)),
            )
            for client in self.clients
        ]  # fmt: skip
        return [*found, total_pilot(found)] if len(found) > 1 else found

    def cached(self, cache: RewriteCache, records: Sequence[Record]) -> list[bool]:
        """Of each record, whether the cache holds its first attempt."""
        return [*first_attempts_cached(self.teacher, records, self.options, cache, self.seed)]

    def has_begun(self, cache: RewriteCache) -> bool:
        """Whether the cache holds a first attempt of some client."""
        return any(any(self.cached(cache, client.train)) for client in self.clients)

    def rewrite(
        self,
        cache: Generations,
        reporter: Reporter,
        sample: Mapping[str, Sequence[Record]] | None = None,
    ) -> Mapping[str, list[Rewritten]]:
        """Every client's rewrites, from the cache where they are in it.

        sample: the records of each client to be rewritten, where not all are.
        """
        rewrites = {}
        for client in self.clients:
            records = client.train if sample is None else sample[client.name]
            gate = self.verifier.gate(client.train)
            with reporter.bar(f"rewriting: {client.name}", len(records), keep=False) as bar:
                rewrites[client.name] = rewrite_records(
                    self.teacher, records, self.options, cache, self.seed, bar, gate
                )
        return rewrites


def open_rewriter(loaded: LoadedRun, recipe: Recipe) -> Rewriter:
    """The base model, every stream off, as the teacher of a recipe's rewriting."""
    options, seed, teacher = recipe.distill, recipe.seed, base_teacher(loaded)
    verifier = build_verifier(options, seed, recipe.model.device, teacher)
    return Rewriter(teacher, verifier, loaded.clients, options, seed)


def base_teacher(loaded: LoadedRun) -> Teacher:
    """The base model, every stream off."""
    install_model(loaded.model, Personal(None))
    base = loaded.base
    return Teacher(base.model, base.chat, identity_digest(loaded.identity), base.context)


def rewrite_all(
    loaded: LoadedRun, method: Method, reporter: Reporter, folder: Path | None = None
) -> Mapping[str, list[Rewritten]]:
    """Every client's rewrites; a pilot says beforehand what they will cost, if that is much.

    folder: of the cache; the user's common one where it is None.
    """
    options, rewriter = method.recipe.distill, open_rewriter(loaded, method.recipe)
    with rewrite_cache(folder) as cache:
        costly = options.attempts > 1 or not SLOW.isdisjoint(options.checks)
        if options.pilot and costly and not rewriter.has_begun(cache):
            reporter.say(describe_pilots(rewriter.pilot(options.pilot)))
        rewrites = rewriter.rewrite(cache, reporter)
    announce_notices(kept_raw(rewrites), reporter)
    return rewrites


def kept_raw(rewrites: Mapping[str, Sequence[Rewritten]]) -> list[Notice]:
    """Records that no rewrite was accepted for, where there are any."""
    places = {name: [r.record.origin for r in each if r.reason] for name, each in rewrites.items()}
    count = sum(map(len, places.values()))
    if not count:
        return []
    words = f"{count} of {sum(map(len, rewrites.values()))} records, whose raw responses stay"
    return [Notice("not rewritten", f"{words} ({records_by_client(places)})")]


def check_pilot(count: int, clients: Sequence[ClientData]) -> None:
    if count < 1:
        raise UserError(f"--pilot {count}: expected a number of records, at least 1")
    smallest = min(clients, key=lambda client: len(client.train))
    if count > len(smallest.train):
        raise UserError(
            f"--pilot {count} is more than the {len(smallest.train)} training records of client "
            f"{smallest.name!r}: give that or less"
        )


def describe_pilots(pilots: Sequence[Pilot]) -> str:
    """A pilot as lines of text."""
    lines = ["expected of the distillation, from a sample of each client (95 % intervals):"]
    for p in pilots:
        first, raw = (
            f"{100 * rate.share:.0f} % ({100 * rate.low:.0f} to {100 * rate.high:.0f})"
            for rate in (p.first, p.raw)
        )
        lines.append(
            f"  {p.client}: {first} pass at the first attempt, {raw} keep the raw response; "
            f"{p.records} records, about {p.generations:.0f} generations, {_tokens(p)}, "
            f"{p.seconds:.0f} s  [sample {p.sample}]"
        )
    return "\n".join(lines)


def _tokens(pilot: Pilot) -> str:
    thoughts = f" ({pilot.thoughts:.0f} of thoughts)" if pilot.thoughts else ""
    return f"{pilot.tokens:.0f} tokens{thoughts}"


def record_distillation(method: Method, rewrites: Mapping[str, list[Rewritten]]) -> None:
    """Provenance: a line per record in the client's own folder, and a summary for the report."""
    folder, seed = method.folder, method.recipe.seed
    store = ClientStore(folder / CLIENTS_FOLDER)
    for client, each in rewrites.items():
        rows = [
            {"origin": r.record.origin, "source": r.source, "reason": r.reason,
             "attempts": r.attempts, "text": r.text}
            for r in each
        ]  # fmt: skip
        path = store.client_folder(client) / REWRITES_FILE
        files.write_json_lines(path, rows, private=True)
    files.write_json(
        folder / DISTILLATION_FILE,
        {
            "clients": {client: summarise_rewrites(each) for client, each in rewrites.items()},
            "pairs": [
                pair
                for client, each in rewrites.items()
                for pair in sample_pairs(client, each, seed)
            ],
        },
    )


def write_reports(method: Method, rewrites: Mapping[str, list[Rewritten]]) -> None:
    """Figures for all, without a text; each client's texts in its own folder alone."""
    folder = method.folder
    store = ClientStore(folder / CLIENTS_FOLDER)
    figures = describe_all(rewrites)
    for client, each in rewrites.items():
        mine = store.client_folder(client)
        described = describe_client(each)
        files.write_json(mine / DISTILLATION_FILE, described, private=True)
        write_client_page(mine / DISTILLATION_PAGE, method.name, client, described)
    files.write_json(folder / FIGURES_FILE, figures)
    write_overview(folder / DISTILLATION_PAGE, method.name, figures)
