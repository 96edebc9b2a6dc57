"""Self-distillation by itself: any model and any records, without a federation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.api.progress import ProgressOption, call_reporter
from fedsdr.data.layouts import rows_to_records
from fedsdr.data.records import Record
from fedsdr.data.rows import Places, SourceTable
from fedsdr.data.template import ChatFormat
from fedsdr.distillation.cache import NoCache
from fedsdr.distillation.rewrite import Rewritten, rewrite_records
from fedsdr.distillation.teacher import Teacher
from fedsdr.distillation.verify import build_verifier, check_verifier
from fedsdr.model.base import context_positions, end_tokens
from fedsdr.recipe.load import parse_recipe
from fedsdr.recipe.sections.data import Source
from fedsdr.recipe.sections.method import PAPER


def rewrite(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record | Mapping[str, Any]],
    *,
    template: str = "auto",
    seed: int = 0,
    progress: ProgressOption = True,
    **options: Any,
) -> list[Rewritten]:
    """Rewrite responses with a transformers model as teacher: y~ ~ f(. given c, x, y).

    records: `Record`s, or rows in any layout of a data file, such as {"instruction", "response"}.
    template: as `model.template` of a recipe. options: keys of `[distill]`, such as the prompt,
    contrast, attempts and checks, with the paper's defaults: no contrast. Returns one `Rewritten`
    per record, in order: its `text` is the raw response if no attempt passed the checks, and
    `reason` says why. Raises `UserError` for wrong options or rows. Source: arXiv 2605.18028, Sec.
    method; SDFT, arXiv 2402.13669.
    """
    # A recipe checks the options, and names what is wrong with them.
    tables = {"method": PAPER, "model": {"path": "lab"}, "distill": options}
    distill = parse_recipe(tables).distill
    given = [_record(number, each) for number, each in enumerate(records, start=1)]
    check_verifier(distill, given, "auto")
    declared = end_tokens(model.config, model.generation_config)
    chat = ChatFormat(tokenizer, template, declared=declared)
    teacher = Teacher(model, chat, identity="", context=context_positions(model.config))
    with call_reporter(progress) as reporter, reporter.bar("rewriting", len(given)) as bar:
        gate = build_verifier(distill, seed, "auto", teacher).gate(given)
        return rewrite_records(teacher, given, distill, NoCache(), seed, bar, gate)


def _record(number: int, row: Record | Mapping[str, Any]) -> Record:
    if isinstance(row, Record):
        return row
    table = SourceTable(Places(Path("records"), "row"), [(number, row)])
    [found], _ = rows_to_records(table, Source(path=""))
    return found.records[0]
