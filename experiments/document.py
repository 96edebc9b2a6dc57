"""`make evidence`: run what is planned, then write evidence.md with its figures and data."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from experiments.archive import ARCHIVE, pack_cells, unpack_cells
from experiments.chapter import Chapter, Table, format_estimate
from experiments.chapters.ablations import ablations_chapter
from experiments.chapters.boosters import boosters_chapter
from experiments.chapters.flattening import flattening_chapter
from experiments.chapters.heterogeneity import heterogeneity_chapter
from experiments.chapters.paradox import paradox_chapter
from experiments.chapters.pareto import pareto_chapter
from experiments.chapters.real_text import real_text_chapter
from experiments.chapters.rivals import rivals_chapter
from experiments.plan import EXPERIMENTS, QUICK, Cell, cells_with_texts, planned_cells
from experiments.results import Results
from experiments.runner import CELLS_FOLDER, run_cells
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.evaluate.verdicts import Claim, Condition
from fedsdr.workflows.run_folder import locked_folder

HOW_TO_JUDGE: Final = """± is half of a 95 % t interval; differences are paired by seed. A
condition holds if its interval is on its side of zero, fails if it is on the other side, and is
open otherwise, or with fewer than three seeds. A claim holds if all of its conditions do, in part
if some do, fails if none does and one fails, or if it speaks of each and one fails, and is open
otherwise; the table counts. Nothing is corrected for how many intervals there are: of twenty that
should include zero one will not. Every figure has its data next to it as CSV."""
HOW_TO_READ: Final = f"""Numbers are means over seeds, in percent, but for words, losses, cosines,
bits and the chapter on real text; {HOW_TO_JUDGE} What the lab can show
and what it cannot is in findings.md."""
DOCUMENT: Final = "evidence.md"
FIGURES: Final = "evidence"
CELLS: Final = "cells.csv"
CHAPTERS: Final = {
    "boosters": boosters_chapter,
    "flattening": flattening_chapter,
    "paradox": paradox_chapter,
    "rivals": rivals_chapter,
    "ablations": ablations_chapter,
    "pareto": pareto_chapter,
    "heterogeneity": heterogeneity_chapter,
}


def choose_experiments(only: str, quick: bool) -> list[str]:
    """The experiments named, separated by commas; without names all of the form."""
    known = QUICK if quick else EXPERIMENTS
    names = only.split(",") if only else [*known]
    if unknown := [name for name in names if name not in known]:
        form = " of --quick" if quick else ""
        raise UserError(f"--only names {unknown[0]!r}: choose from {', '.join(known)}{form}")
    return [name for name in EXPERIMENTS if name in names]


def write_evidence(
    out: Path,
    seeds: Sequence[int],
    names: Sequence[str],
    jobs: int,
    reporter: Reporter,
    quick: bool = False,
    known: Path | None = None,
) -> Path:
    """Run the cells that are not done and write the document; returns its path.

    known: an archive of finished cells.
    """
    with locked_folder(out):
        if known is not None:
            count = unpack_cells(known, out / CELLS_FOLDER)
            reporter.say(f"{count} finished cells from {known}")
        run_cells(planned_cells(names, quick), seeds, out, jobs, reporter)
        return write_document(out, seeds, names, quick)


def write_document(
    out: Path, seeds: Sequence[int], names: Sequence[str], quick: bool = False
) -> Path:
    """The document of whatever is finished in `out`."""
    results = Results(out, seeds)
    written = [*(CHAPTERS[name](results) for name in names), real_text_chapter(results)]
    cells = planned_cells(names)
    write_figures(out / FIGURES, written)
    files.write_text(out / FIGURES / CELLS, every_cell(results, cells).csv())
    archive = pack_finished(results, cells, cells_with_texts())
    files.write_bytes(out / FIGURES / ARCHIVE, archive)
    everything = len(names) == len(QUICK if quick else EXPERIMENTS)
    only = (" --quick" if quick else "") + ("" if everything else f" --only {','.join(names)}")
    head = [
        "# Evidence",
        "The paper's claims (arXiv 2605.18028), tested on the embedded lab. Written by",
        f"```\npython -m experiments{only} --seeds {','.join(map(str, seeds))}\n```",
        HOW_TO_READ,
        *missing_cells(results, cells),
        where_cells_are(FIGURES, "models"),
    ]
    return write_chapters(out / DOCUMENT, head, verdicts_table(written), written, FIGURES)


def where_cells_are(figures: str, lacking: str) -> str:
    """Where a document's measurements are, in `figures`. lacking: what the archive leaves out."""
    return (
        f"What each cell measured, seed by seed: [{CELLS}]({figures}/{CELLS}). The finished cells, "
        f"without {lacking}: [{ARCHIVE}]({figures}/{ARCHIVE}). With `--cells` and its path the "
        "command writes this document from them, and runs only what they lack."
    )


def write_chapters(
    path: Path, head: Sequence[str], verdicts: str, written: Sequence[Chapter], figures: str
) -> Path:
    """A document: its head, the verdicts on all claims, and the chapters. Returns its path.

    figures: the folder of the chapters' figures, from the document's.
    """
    chapters = (chapter_text(number, chapter, figures) for number, chapter in enumerate(written, 1))
    files.write_text(path, "\n\n".join([*head, "## Verdicts", verdicts, *chapters]) + "\n")
    return path


def write_figures(folder: Path, written: Sequence[Chapter]) -> None:
    """The figures of all chapters, each with its data."""
    for chapter in written:
        for figure in chapter.figures:
            figure.write(folder)


def every_cell(results: Results, cells: Iterable[Cell], by_client: bool = False) -> Table:
    """A row for each metric of each cell and seed: what all tables and verdicts are made of.

    by_client: metrics of single clients, too.
    """
    rows = []
    for cell in cells:
        for seed in results.done(cell):
            found = results.metrics(cell, seed)
            rows += [
                [cell.key, str(seed), metric, f"{value:.6g}"]
                for metric, value in sorted(found.items())
                if by_client or "/" not in metric
            ]
    return Table(["cell", "seed", "metric", "value"], rows)


def pack_finished(
    results: Results, cells: Iterable[Cell], with_texts: Iterable[Cell] = ()
) -> bytes:
    """An archive of the finished ones of some cells. with_texts: whose rewrites it holds, too."""

    def folders(cells: Iterable[Cell]) -> list[Path]:
        return [results.folder(cell, seed) for cell in cells for seed in results.done(cell)]

    return pack_cells(results.out / CELLS_FOLDER, folders(cells), folders(with_texts))


def missing_cells(results: Results, cells: Sequence[Cell]) -> list[str]:
    """That not everything has been run yet, if so."""
    asked, done = len(cells) * len(results.seeds), sum(len(results.done(c)) for c in cells)
    if asked == done:
        return []
    return [
        f"**Not finished: {done} of {asked} cells** (a method in a world, with one seed) had been "
        "run when this was written; the same command goes on with the others. Rows show how many "
        "seeds they have, and what has none is left out."
    ]


def verdicts_table(written: Sequence[Chapter], heading: str = "claim") -> str:
    """A row for each claim of all chapters. heading: of the column of claims."""
    rows = [f"| {heading} | verdict | conditions |", "|---|---|---|"]
    rows += [
        f"| {claim.text} | **{claim.verdict}** | {claim.counts} |"
        for chapter in written
        for claim in chapter.claims
    ]
    return "\n".join(rows)


def chapter_text(number: int, chapter: Chapter, figures: str) -> str:
    """A chapter in Markdown. figures: the folder of its figures, from the document's."""
    parts = [f"## {number}. {chapter.title}", chapter.how, *map(_claim, chapter.claims)]
    for title, table in chapter.tables:
        parts += [f"### {title}", table.markdown()]
    for figure in chapter.figures:
        image = f"![{figure.caption}]({figures}/{figure.name}.svg)"
        parts.append(
            f"{image}\n\n{figure.caption} Data: [{figure.name}.csv]({figures}/{figure.name}.csv)"
        )
    return "\n\n".join([*parts, *chapter.notes])


def _claim(claim: Claim) -> str:
    lines = "\n".join(f"* {each.what}: {_difference(each)}" for each in claim.conditions)
    return f"**{claim.text}: {claim.verdict}.**\n\n{lines}"


def _difference(condition: Condition) -> str:
    """With two decimals, and more where these would round a difference away."""
    difference = condition.difference
    digits = 4 if difference and abs(difference["mean"]) < 0.1 else 2
    return f"{format_estimate(difference, digits, sign=True)} ({condition.verdict})"
