"""The distillation stage by itself: its pilot, its rewrites, and what is written of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
from fedsdr.data.records import ClientData
from fedsdr.diagnosis.distilled import describe_all, describe_client
from fedsdr.distillation.cache import RewriteCache
from fedsdr.distillation.pilot import Pilot, run_pilot, total_pilot
from fedsdr.distillation.rewrite import (
    Rewritten,
    first_attempts_cached,
    sample_pairs,
    summarise_rewrites,
)
from fedsdr.distillation.verify import SLOW, build_verifier
from fedsdr.federation.workbench import Workbench
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report.distillation import write_client_page, write_overview
from fedsdr.training.store import ClientStore
from fedsdr.workflows.prepare import prepare_run, rewrite_cache
from fedsdr.workflows.run_folder import claim_folder, claimed_folder, method_folders


def run_distillation(
    recipe: Recipe, out: Path, reporter: Reporter, resume: bool = False, report: bool = False
) -> dict[str, Path]:
    """Rewrite for every method of the recipe that distils; returns method -> its folder.

    Fills the rewrite cache, so that a run of the recipe, in `out` too, does not generate again.
    Raises `UserError` before any work, and before anything is written.
    """
    setting = prepare_run(recipe, reporter=reporter)
    stages = distilling_methods(recipe, out)
    with claimed_folder(out, recipe, resume):
        announce_notices(setting.notices, reporter)
        bench = setting.workbench(reporter)
        claim_folder(out, recipe)
        for name, folder, each in stages:
            reporter.say(f"distillation of {name}")
            rewrites = rewrite_all(bench, each, reporter)
            record_distillation(folder, rewrites, each.seed)
            if report:
                write_reports(folder, name, rewrites)
    return {name: folder for name, folder, _ in stages}


def pilot_methods(recipe: Recipe, count: int, reporter: Reporter) -> dict[str, list[Pilot]]:
    """What every kind of rewriting of a recipe would cost, from `count` records a client, by the
    name of its method."""
    setting = prepare_run(recipe, reporter=reporter)
    stages = distilling_methods(recipe, Path())
    check_pilot(count, setting.clients)
    bench = setting.workbench(reporter)
    return {name: pilot_clients(bench, each, count) for name, _, each in stages}


def describe_outcome(name: str, folder: Path) -> str:
    """What came of it, in a line, and where it lies."""
    clients = files.read_json(folder / DISTILLATION_FILE)["clients"].values()
    rewritten, records = (sum(c[key] for c in clients) for key in ("rewritten", "records"))
    page = folder / DISTILLATION_PAGE
    shown = f"; report: {page}, texts in the clients' own folders" if page.exists() else ""
    return f"{name}: {rewritten} of {records} records rewritten, into {folder}{shown}"


def distilling_methods(recipe: Recipe, out: Path) -> list[tuple[str, Path, Recipe]]:
    """(name, folder, recipe) of the methods that rewrite, each kind of rewriting once."""
    stages: list[tuple[str, Path, Recipe]] = []
    for name, folder, each in reversed(method_folders(recipe, out)):
        seen = [other.distill for _, _, other in stages]
        if each.federation.rewrites and each.distill not in seen:
            stages.append((name, folder, each))
    if not stages:
        federation = recipe.federation
        raise UserError(
            f"no method of this recipe rewrites (federation.targets = {federation.targets!r}, "
            f'rounds = {federation.rounds}): set federation.targets = "distilled"'
        )
    return stages


def rewrite_all(
    bench: Workbench, recipe: Recipe, reporter: Reporter, folder: Path | None = None
) -> Mapping[str, list[Rewritten]]:
    """Every client's rewrites; told beforehand what they will cost, if that is much.

    folder: of the cache; the user's common one where it is None.
    """
    options = recipe.distill
    with rewrite_cache(folder) as cache:
        costly = options.attempts > 1 or not SLOW.isdisjoint(options.checks)
        if options.pilot and costly and not _begun(bench, recipe, cache):
            reporter.say(describe_pilots(pilot_clients(bench, recipe, options.pilot)))
        rewrites = bench.rewrite(recipe, cache, reporter)
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


def _begun(bench: Workbench, recipe: Recipe, cache: RewriteCache) -> bool:
    """Whether the cache holds a first attempt of some client already."""
    teacher, options = bench.teacher(), recipe.distill
    found = (
        first_attempts_cached(teacher, c.train, options, cache, recipe.seed) for c in bench.clients
    )
    return any(any(each) for each in found)


def pilot_clients(bench: Workbench, recipe: Recipe, count: int) -> list[Pilot]:
    """A pilot of up to `count` records for each client, then all clients together."""
    verifier = build_verifier(recipe.distill, recipe.seed, recipe.model.device)
    teacher = bench.teacher()
    found = [
        run_pilot(
            teacher, client.name, client.train, recipe.distill, recipe.seed,
            verifier.gate(client.train), min(count, len(client.train)),
        )
        for client in bench.clients
    ]  # fmt: skip
    return [*found, total_pilot(found)] if len(found) > 1 else found


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
            f"{p.records} records, about {p.generations:.0f} generations, {p.tokens:.0f} tokens, "
            f"{p.seconds:.0f} s  [sample {p.sample}]"
        )
    return "\n".join(lines)


def record_distillation(folder: Path, rewrites: Mapping[str, list[Rewritten]], seed: int) -> None:
    """Provenance: a line per record in the client's own folder, and a summary for the report."""
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


def write_reports(folder: Path, method: str, rewrites: Mapping[str, list[Rewritten]]) -> None:
    """Figures for all, without a text; each client's texts in its own folder alone."""
    store = ClientStore(folder / CLIENTS_FOLDER)
    figures = describe_all(rewrites)
    for client, each in rewrites.items():
        mine = store.client_folder(client)
        described = describe_client(each)
        files.write_json(mine / DISTILLATION_FILE, described, private=True)
        write_client_page(mine / DISTILLATION_PAGE, method, client, described)
    files.write_json(folder / FIGURES_FILE, figures)
    write_overview(folder / DISTILLATION_PAGE, method, figures)
