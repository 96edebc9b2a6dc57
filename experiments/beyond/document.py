"""docs/beyond.md: what `fedsdr2` was chosen by and what confirms it, side by side."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes

from experiments.archive import ARCHIVE
from experiments.beyond.plan import ABLATED, CHOSEN, GOLD, UNREHEARSED, WORLDS, World, seed_groups
from experiments.chapter import Chapter, Draw, Figure, Table, format_estimate
from experiments.chapters.shared import estimate_cells, half_width, overview_table
from experiments.document import (
    CELLS,
    HOW_TO_JUDGE,
    every_cell,
    pack_finished,
    verdicts_table,
    where_cells_are,
    write_chapters,
    write_figures,
)
from experiments.plan import Cell, Cells
from experiments.real.results import RealResults
from experiments.real.shared import ahead_of
from experiments.results import Results
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.statistics import Estimate, non_dominated, t_interval
from fedsdr.estimate.plan import reading_passes
from fedsdr.evaluate.verdicts import Claim, Condition
from fedsdr.lab.world import WorldOptions, build_world
from fedsdr.report.labels import method_label as label
from fedsdr.workflows.plan import plan_prepared
from fedsdr.workflows.prepare import prepare_run, world_options

DOCUMENT: Final = "beyond.md"
FIGURES: Final = "beyond"
GLOBAL: Final = {
    "client_facts": "client facts",
    "changed_facts": "changed facts",
    "general": "general, all",
    UNREHEARSED: "general, never rehearsed",
    "general_kept": "general kept",
    "hallucination": "hallucination",
    "inventions": "inventions",
    "length": "words",
}
PLAIN: Final = "fedavg"
PAPERS: Final = "fedsdr"
COSTS: Final = (
    "Tokens and bytes of a run, as `--dry-run` plans them: one attempt a rewrite, rehearsed texts "
    "at their longest"
)
PERSONAL: Final = {
    "personal_client_facts": "client facts",
    "personal_general": "general, never rehearsed",
    "personal_general_kept": "general kept",
    "personal_base_style": "in the base model's style",
    "personal_house_style": "in the house style",
    "personal_length": "words",
}


class BeyondResults(RealResults):
    """With the general knowledge of the synthetic lab that no run may rehearse."""

    def metrics(self, cell: Cell, seed: int) -> dict[str, float]:
        found = super().metrics(cell, seed)
        recipe = cell.recipe(seed)
        if not recipe.uses_lab:
            return found
        never = _never_rehearsed(world_options(recipe))
        answered = self.answers(cell, seed)[-len(never) :]
        right = [true for (true, _), it in zip(answered, never, strict=True) if it]
        return {**found, UNREHEARSED: 100 * sum(right) / len(right)}


@cache
def _never_rehearsed(options: WorldOptions) -> list[bool]:
    """Of each general fact of a world, whether no run may rehearse it."""
    world = build_world(options)
    public = {*world.public_questions()}
    return [fact.question(0) not in public for fact in world.general]


class Halves:
    """The finished cells of a world: of the seeds that the choice was made on, and of others.

    varied: of the seeds that all that is changed of the methods was run on.
    """

    def __init__(self, out: Path, world: World) -> None:
        self.world = world
        self.development = BeyondResults(out, world.development)
        self.confirmation = BeyondResults(out, world.confirmation)
        self.varied = BeyondResults(out, world.development[:ABLATED])

    def each(self) -> Mapping[str, Results]:
        return {"development": self.development, "confirmation": self.confirmation}


def write_beyond(out: Path) -> Path:
    """The document of whatever is finished in `out`; returns its path. Raises `UserError` where
    nothing is."""
    halves = [
        half
        for half in (Halves(out, world) for world in WORLDS.values())
        if any(each.done(half.world.methods[half.world.chosen]) for each in half.each().values())
    ]
    if not halves:
        raise UserError(f"no cell of {CHOSEN} is finished in {out}: run some, or give --cells")
    chapters = [beyond_chapter(half) for half in halves]
    write_figures(out / FIGURES, chapters)
    worlds = WORLDS.values()
    results = BeyondResults(out, sorted({seed for world in worlds for seed in world.seeds}))
    cells = [cell for world in worlds for cell in world.cells]
    files.write_text(out / FIGURES / CELLS, every_cell(results, cells).csv())
    files.write_bytes(out / FIGURES / ARCHIVE, pack_finished(results, cells))
    head = [
        "# Beyond the paper",
        f"The method `{CHOSEN}` ([what it is](algorithms.md#fedsdr2)), tested on seeds that it was "
        "not chosen by. Written by",
        "```\npython -m experiments.beyond\n```",
        "It was chosen on the development seeds alone, and the choice was written down "
        "([findings.md](findings.md#the-choice-of-fedsdr2)) before the others were looked at. "
        f"Numbers are means over seeds, in percent, but for words; {HOW_TO_JUDGE}",
        *_missing(out),
        where_cells_are(FIGURES, "models"),
    ]
    verdicts = verdicts_table(chapters, "claim, on confirmation seeds")
    return write_chapters(out / DOCUMENT, head, verdicts, chapters, FIGURES)


def _missing(out: Path) -> list[str]:
    """That not everything has been run yet, if so, by world and half."""
    found = []
    for world in WORLDS.values():
        for half, development in (("development", True), ("confirmation", False)):
            groups = seed_groups(world, development)
            asked = [(cell, seed) for seed, cells in groups for cell in cells]
            done = sum(bool(Results(out, [seed]).done(cell)) for cell, seed in asked)
            if done < len(asked):
                found.append(f"{world.title}, {half}: {done} of {len(asked)} cells")
    return [f"**Not finished**: {'; '.join(found)}."] if found else []


def beyond_chapter(halves: Halves) -> Chapter:
    world = halves.world
    claims = [*_goals(halves.confirmation, world), *_ahead(halves), _own_ahead(halves)]
    tables = [
        (f"{side}: {half}", _table(results, world.methods, metrics))
        for side, metrics in (("Global models", GLOBAL), ("Clients' own models", PERSONAL))
        for half, results in halves.each().items()
    ]
    if world.ablations:
        whole = {world.chosen: world.methods[world.chosen], **world.ablations}
        both = {**GLOBAL, **{m: f"own models: {name}" for m, name in PERSONAL.items()}}
        tables.append(("A part changed: development", _table(halves.varied, whole, both)))
    if world.settings:
        tables += [
            ("Other settings: development", _settings_table(halves.varied, world)),
            (
                f"{label(CHOSEN).short} - {label(PLAIN).short} in other settings: development",
                _lead_table(halves.varied, world),
            ),
            (COSTS, _cost_table(world)),
        ]
    return Chapter(
        world.title[0].upper() + world.title[1:],
        f"Development: seeds {_listed(world.development)}. Confirmation: seeds "
        f"{_listed(world.confirmation)}; what is changed of a method was run on seeds "
        f"{_listed(world.development[:ABLATED])}."
        + (f" Only {label(GOLD).short} knows the gold answers." if GOLD in world.methods else ""),
        claims,
        tables,
        [
            _front_figure(halves, "global models", (world.facts, world.kept)),
            _front_figure(halves, "personal models", (f"personal_{world.facts}", world.own_kept)),
        ],
    )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _goals(results: Results, world: World) -> list[Claim]:
    cell = world.methods[world.chosen]
    sides: dict[bool, list[Condition]] = {False: [], True: []}
    words: dict[bool, list[str]] = {False: [], True: []}
    for metric, bound, above in world.goals:
        values = results.values(cell, metric, results.done(cell))
        found = t_interval([value - bound for value in values]) if values else None
        own = metric.startswith("personal_")
        name = (PERSONAL if own else GLOBAL)[metric]
        sides[own].append(Condition(f"{metric} - {bound:g}", found, positive=above))
        words[own].append(f"{name} at {'least' if above else 'most'} {bound:g}")
    titles = {False: "The global model", True: "Clients' own models"}
    return [
        Claim(f"{titles[own]}: {', '.join(words[own])}", each)
        for own, each in sides.items()
        if each
    ]


def _ahead(halves: Halves) -> list[Claim]:
    world, results = halves.world, halves.confirmation
    rivals = [name for name in world.methods if name not in (world.chosen, GOLD)]
    chosen = label(world.chosen).short
    return [
        Claim(
            f"On {world.title} the global model of {chosen} is above that of {label(rival).short} "
            "in client facts and in general knowledge",
            [
                ahead_of(results, world.methods, world.chosen, rival, metric)
                for metric in (world.facts, world.kept)
            ],
        )
        for rival in rivals
    ]


def _own_ahead(halves: Halves) -> Claim:
    """Of clients' own models, which only FedSDR has besides."""
    world, results = halves.world, halves.confirmation
    chosen, rival = label(world.chosen).short, label(PAPERS).short
    return Claim(
        f"On {world.title} clients' own models of {chosen} are above those of {rival} in client "
        "facts and in general knowledge (added after its numbers had been seen)",
        [
            ahead_of(results, world.methods, world.chosen, PAPERS, metric)
            for metric in (f"personal_{world.facts}", world.own_kept)
        ],
    )


def _table(results: Results, cells: Cells, metrics: Mapping[str, str]) -> Table:
    """The overview of those methods and metrics of which something was measured."""
    shown = {
        m: title for m, title in metrics.items() if any(results.has(c, m) for c in cells.values())
    }
    named = {
        label(name).short: cell
        for name, cell in cells.items()
        if any(results.has(cell, metric) for metric in shown)
    }
    return overview_table(results, named, shown)


def _settings_table(results: Results, world: World) -> Table:
    rows = {
        f"{setting}: {label(name).short}": cell
        for setting, cells in world.settings.items()
        for name, cell in cells.items()
    }
    return overview_table(results, rows, _both_sides(world))


def _lead_table(results: Results, world: World) -> Table:
    """The chosen method's difference to FedAvg in each setting, paired by seed."""
    metrics, rows = _both_sides(world), []
    for setting, cells in world.settings.items():
        if seeds := results.done(cells[CHOSEN], cells[PLAIN]):
            leads = [results.difference(cells[CHOSEN], cells[PLAIN], m) for m in metrics]
            numbers = (format_estimate(lead, sign=True) for lead in leads)
            rows.append([setting, *numbers, str(len(seeds))])
    return Table(["", *metrics.values(), "seeds"], rows)


def _both_sides(world: World) -> Mapping[str, str]:
    """The metrics that count, of global models and of clients' own."""
    shared = {m: GLOBAL[m] for m in (world.facts, world.kept, "hallucination")}
    own = {m: f"own models: {PERSONAL[m]}" for m in (f"personal_{world.facts}", world.own_kept)}
    return shared | own


def _cost_table(world: World) -> Table:
    """What a run of each method on the first seed reads, writes, trains on and sends."""
    rows = []
    for name, cell in world.methods.items():
        recipe = cell.recipe(world.development[0])
        plan = plan_prepared(prepare_run(recipe), flops=1.0)
        (method,) = plan.methods
        once = plan.rewrites.prompt_tokens + plan.rewrites.tokens if method.distils else 0
        numbers = (
            once * reading_passes([recipe.distill]),
            plan.rehearsed.most_tokens,
            method.tokens,
            method.traffic.bytes_up + method.traffic.bytes_down,
        )
        rows.append([label(name).short, *(f"{number:,}" for number in numbers)])
    columns = ["read and written to rewrite", "rehearsed texts", "trained on", "bytes sent"]
    return Table(["", *columns], rows)


def _front_figure(halves: Halves, side: str, axes_of: tuple[str, str]) -> Figure:
    """Facts against general knowledge with intervals, of either half; the front is marked."""
    world, rows, panels = halves.world, list[list[str]](), list[Draw]()
    for half, results in halves.each().items():
        pairs = {
            name: tuple(results.estimate(cell, metric) for metric in axes_of)
            for name, cell in world.methods.items()
        }
        points = {name: (x, y) for name, (x, y) in pairs.items() if x and y}
        marked = non_dominated([(x["mean"], y["mean"]) for x, y in points.values()])
        for (name, pair), on in zip(points.items(), marked, strict=True):
            numbers = [number for e in pair for number in estimate_cells(e)[:3]]
            rows.append([half, name, *numbers, str(on).lower()])
        panels.append(_crosses(half, points))
    columns = [f"{metric}{end}" for metric in axes_of for end in ("", " low", " high")]
    caption = (
        f"{side.capitalize()} on {world.title}: client facts against general knowledge, with 95 % "
        "intervals."
    )
    name = f"{world.name}-{side.split()[0]}"
    return Figure(name, caption, panels, Table(["half", "method", *columns, "on_front"], rows))


def _crosses(title: str, points: Mapping[str, tuple[Estimate, Estimate]]) -> Draw:
    def draw(axes: Axes) -> None:
        for name, (x, y) in points.items():
            axes.errorbar(
                x["mean"], y["mean"], xerr=half_width(x), yerr=half_width(y), fmt="o",
                label=label(name).short,
            )  # fmt: skip
        axes.set_xlabel("client facts, %")
        axes.set_ylabel("general knowledge, %")
        axes.set_title(title, loc="left", fontsize=10)

    return draw
