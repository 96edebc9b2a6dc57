"""docs/real.md: run what is planned on a pretrained model, then write what came of it."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from experiments.archive import ARCHIVE, unpack_cells
from experiments.chapter import Chapter
from experiments.document import (
    CELLS,
    HOW_TO_JUDGE,
    every_cell,
    missing_cells,
    pack_finished,
    where_cells_are,
    write_chapters,
    write_figures,
)
from experiments.plan import Cells
from experiments.real.accepted import SAMPLE_FILE, accepted_chapter, draw_sample, published_rows
from experiments.real.domains import domains_chapters
from experiments.real.english import english_chapters
from experiments.real.plan import EXPERIMENTS
from experiments.real.results import RealResults
from experiments.real.shared import finished_cells
from experiments.runner import CELLS_FOLDER, cell_folder, unfinished
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.evaluate.verdicts import Claim
from fedsdr.workflows.prepare import prepare_run

DOCUMENT: Final = "real.md"
FIGURES: Final = "real"
SYNTHETIC: Final = Path(__file__).parents[2] / "docs" / "evidence.md"
VERDICT: Final = re.compile(r"^\| (.+) \| \*\*(.+)\*\* \| (.+) \|$", re.MULTILINE)
TITLES: Final = {"english": "English lab", "domains": "five domains"}
NO_GPU: Final = " Not measured: anything on a GPU or on a larger model; MMLU and GSM8K."
CHAPTERS: Final = {"english": english_chapters, "domains": domains_chapters}


def choose_experiments(only: str) -> list[str]:
    """The experiments named, separated by commas; without names all."""
    names = only.split(",") if only else [*EXPERIMENTS]
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise UserError(f"--only names {unknown[0]!r}: choose from {', '.join(EXPERIMENTS)}")
    return [name for name in EXPERIMENTS if name in names]


def unpack_known(known: Path, out: Path) -> int:
    """Put finished cells, and the labelled sample that lies with them, into `out`; returns how many
    cells are new."""
    sample = known.with_name(SAMPLE_FILE)
    count = unpack_cells(known, out / CELLS_FOLDER)
    if sample.exists() and not (out / FIGURES / SAMPLE_FILE).exists():
        files.make_folder(out / FIGURES)
        shutil.copyfile(sample, out / FIGURES / SAMPLE_FILE)
    return count


def check_unfinished(
    planned: Mapping[str, Cells], seeds: Sequence[int], out: Path, reporter: Reporter
) -> None:
    """Raise what is wrong with model, data and benchmarks of what is still to be run; downloads and
    converts the model."""
    for cells in planned.values():
        tasks = [(cell_folder(out, cell, seed), cell) for seed in seeds for cell in cells.values()]
        if left := unfinished(tasks):
            prepare_run(left[0][1].recipe(seeds[0]), reporter=reporter)


def write_real(out: Path, planned: Mapping[str, Cells], seeds: Sequence[int], command: str) -> Path:
    """The document of whatever is finished in `out`; returns its path.

    command: what it says that it was written by. Raises `UserError` where nothing is finished.
    """
    results = RealResults(out, seeds)
    ready = {name: cells for name, cells in planned.items() if finished_cells(results, cells)}
    if not ready:
        raise UserError(f"no cell is finished in {out}: run some, or give --cells with an archive")
    chapters = {name: CHAPTERS[name](results, cells) for name, cells in ready.items()}
    written = [chapter for each in chapters.values() for chapter in each]
    if rows := _sample(results, planned):
        files.write_json_lines(out / FIGURES / SAMPLE_FILE, rows)
        read = [row for row in rows if row["label"]]
        written += [accepted_chapter(read)] if read else []
    cells = [cell for each in planned.values() for cell in each.values()]
    write_figures(out / FIGURES, written)
    files.write_text(out / FIGURES / CELLS, every_cell(results, cells, by_client=True).csv())
    files.write_bytes(out / FIGURES / ARCHIVE, pack_finished(results, cells))
    head = [
        "# Evidence on pretrained models",
        "The paper's claims (arXiv 2605.18028), tested on an instruction model that people use: "
        "the model itself, facts of which it knows nothing, and real files. Written by",
        f"```\n{command}\n```",
        _basis(results, ready),
        *missing_cells(results, cells),
        f"Numbers are means over seeds, in percent but where a unit is named; {HOW_TO_JUDGE}",
        where_cells_are(FIGURES, "models and texts"),
    ]
    return write_chapters(out / DOCUMENT, head, _verdicts(chapters), written, FIGURES)


def _sample(results: RealResults, planned: Mapping[str, Cells]) -> list[dict[str, object]]:
    """The sample of accepted rewrites as it is published: as labelled in the run folder, as an
    archive brought it, or drawn now, for someone to label."""
    drawn, brought = results.out / SAMPLE_FILE, results.out / FIGURES / SAMPLE_FILE
    if not drawn.exists():
        if brought.exists():
            return files.read_json_lines(brought)
        if not (rows := draw_sample(results, planned)):
            return []
        files.write_json_lines(drawn, rows, private=True)
    return published_rows(files.read_json_lines(drawn))


def _basis(results: RealResults, ready: Mapping[str, Cells]) -> str:
    """What the numbers rest on: model, device, seeds and cells."""
    every = [cell for cells in ready.values() for cell in cells.values()]
    models = [results.model(cell, seed) for cell in every for seed in results.done(cell)]
    known = next((model for model in models if model), {})
    path = Path(every[0].recipe(0).model.path).name
    parts = [", ".join([path, *(f"{key} {value}" for key, value in known.items())])]
    for name, cells in ready.items():
        done = [{*results.done(cell)} for cell in cells.values()]
        whole = len(set.intersection(*done))
        parts.append(
            f"{TITLES[name]}: {sum(map(len, done))} cells, {whole} seeds of which all methods are "
            "finished"
        )
    on_gpu = str(known.get("device", "")).startswith("cuda")
    return f"It rests on: {'; '.join(parts)}." + ("" if on_gpu else NO_GPU)


def _verdicts(chapters: Mapping[str, Sequence[Chapter]]) -> str:
    """A row a claim; columns for each experiment, and for the synthetic lab where that has it."""
    judged = {name: _claims(each) for name, each in chapters.items()}
    synthetic = {
        text: f"{verdict} ({counts})"
        for text, verdict, counts in VERDICT.findall(SYNTHETIC.read_text(encoding="utf-8"))
    }
    titles = [TITLES[name] for name in judged]
    rows = ["| claim | " + " | ".join([*titles, "synthetic lab"]) + " |"]
    rows.append("|---" * (len(titles) + 2) + "|")
    for text in dict.fromkeys(text for each in judged.values() for text in each):
        found = [_verdict(each[text]) if text in each else "" for each in judged.values()]
        rows.append("| " + " | ".join([text, *found, synthetic.get(text, "")]) + " |")
    return "\n".join(rows)


def _claims(chapters: Iterable[Chapter]) -> dict[str, Claim]:
    return {claim.text: claim for chapter in chapters for claim in chapter.claims}


def _verdict(claim: Claim) -> str:
    return f"**{claim.verdict}**" + (f" ({claim.counts})" if claim.counts else "")
