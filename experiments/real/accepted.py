"""What the checks let pass, read by people: a sample of accepted rewrites and its table.

The sample is drawn once, with its texts, into the run folder; whoever reads it fills in `label`.
What is published leaves out the texts of other people's files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from experiments.chapter import Chapter, Table
from experiments.plan import Cell, Cells
from experiments.real.plan import EXPERIMENTS
from experiments.real.results import RealResults
from fedsdr.core import files, seeds
from fedsdr.core.errors import UserError
from fedsdr.core.layout import CLIENTS_FOLDER, REWRITES_FILE
from fedsdr.data.records import Record
from fedsdr.distillation.checks import Candidate, Rewrite
from fedsdr.distillation.verify import build_verifier
from fedsdr.recipe.sections.distill import Distill
from fedsdr.training.store import ClientStore
from fedsdr.workflows.prepare import prepare_run

SAMPLE_FILE: Final = "accepted.jsonl"
SAMPLE: Final = 50  # accepted rewrites of an experiment
LABELS: Final = ("true", "wrong", "invents", "no answer", "rambling")
TEXTS: Final = ("prompt", "raw", "rewrite")
Row = dict[str, Any]


def draw_sample(results: RealResults, planned: Mapping[str, Cells]) -> list[Row]:
    """Accepted rewrites of FedSD with the first seed, `SAMPLE` of each experiment or as many as
    there are, clients in turn; none unless both experiments have their rewrites here."""
    seed = results.seeds[0]
    cells = {name: each["fedsd"] for name, each in planned.items()}
    folders = [results.folder(cell, seed) for cell in cells.values() if seed in results.done(cell)]
    if len([each for each in folders if (each / CLIENTS_FOLDER).exists()]) < len(EXPERIMENTS):
        return []
    return [row for name, cell in cells.items() for row in _drawn(results, name, cell, seed)]


def _drawn(results: RealResults, experiment: str, cell: Cell, seed: int) -> list[Row]:
    store = ClientStore(results.folder(cell, seed) / CLIENTS_FOLDER)
    waiting = []
    for client in prepare_run(cell.recipe(seed)).clients:
        rewrites = files.read_json_lines(store.client_folder(client.name) / REWRITES_FILE)
        rows = _accepted(experiment, client.name, client.train, rewrites)
        rows.sort(key=lambda row: seeds.derive_seed(seed, "sample", row["client"], row["number"]))
        waiting.append(rows)
    turns = [rows[turn] for turn in range(SAMPLE) for rows in waiting if turn < len(rows)]
    return sorted(turns[:SAMPLE], key=lambda row: (row["client"], row["number"]))


def _accepted(
    experiment: str, client: str, records: Sequence[Record], rewrites: Sequence[Row]
) -> list[Row]:
    """refused_by: what the default checks refuse it for, those that need a gold answer included."""
    gate = build_verifier(Distill(), 0, "cpu").gate(records)
    pairs = list(zip(records, rewrites, strict=True))
    verdicts = gate([Candidate(record, Rewrite(row["text"], True)) for record, row in pairs])
    return [
        {
            "experiment": experiment, "client": client, "number": number,
            "prompt": record.instruction, "raw": record.response, "rewrite": row["text"],
            "refused_by": verdict.reason, "label": "",
        }
        for number, ((record, row), verdict) in enumerate(zip(pairs, verdicts, strict=True))
        if row["source"] == "rewritten"
    ]  # fmt: skip


def published_rows(rows: Sequence[Row]) -> list[Row]:
    """Without the texts of files that are not ours. Raises `UserError` for an unknown label."""
    for row in rows:
        if row["label"] not in ("", *LABELS):
            raise UserError(
                f"{SAMPLE_FILE}: {row['experiment']}, {row['client']} {row['number']} has the "
                f"label {row['label']!r}: expected one of {', '.join(LABELS)}, or nothing"
            )
    return [
        row if row["experiment"] == "english" else {k: v for k, v in row.items() if k not in TEXTS}
        for row in rows
    ]


def accepted_chapter(rows: Sequence[Row]) -> Chapter:
    """How accepted rewrites were labelled by reading, of each client and in all."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['experiment']}: {row['client']}", []).append(row)
    for row in rows:
        groups.setdefault(f"{row['experiment']}: all", []).append(row)
    default = [row for row in rows if not row["refused_by"]]
    groups |= {"all": [*rows], "of these, accepted by the default checks": default}
    return Chapter(
        "What the checks let pass",
        f"Rewrites that the checks of FedSD accepted with the first seed, {SAMPLE} of each "
        "experiment, drawn by seed over the clients; those that have been read one by one are "
        "counted. true: states what the raw response does; no answer: says nothing of it; wrong: "
        "contradicts it or leaves out what was asked for, a unit included, or misspells a name; "
        "invents: adds facts that neither prompt nor raw response has; rambling: states it among "
        "talk that was not asked for. The default checks include label, number, answer and "
        "invention, which FedSD here leaves out.",
        (),
        [("Read by hand", _table(groups))],
        (),
        [
            "Every one of them, without texts of other people's files: "
            f"[{SAMPLE_FILE}](real/{SAMPLE_FILE})."
        ],
    )


def _table(groups: Mapping[str, Sequence[Row]]) -> Table:
    lines = []
    for name, rows in groups.items():
        counts = Counter(row["label"] for row in rows)
        lines.append([name, str(len(rows)), *(str(counts[label]) for label in LABELS)])
    return Table(["", "read", *LABELS], lines)
