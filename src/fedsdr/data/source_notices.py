"""What of the sources is not learnt from: skipped rows, assistant turns, unread columns."""

from collections.abc import Sequence
from typing import Final

from fedsdr.core.notices import Notice, name_items, plural_form
from fedsdr.data.rows import SkippedRow
from fedsdr.data.sources import SourceRecords
from fedsdr.recipe.sections.data import Learn

SHOWN_ROWS: Final = 3  # skipped ones that a line names
SHOWN_NAMES: Final = 8  # columns that a line names


def source_notices(sources: Sequence[SourceRecords], learn: Learn) -> list[Notice]:
    """A line for each source with skipped rows or unused columns, and one for all assistant
    turns, where not all of them are learnt."""
    notices = [
        Notice("skipped", f"{len(each.skipped)} of {each.rows} rows of {each.file}: {skipped}")
        for each in sources
        if (skipped := name_skipped(each.skipped))
    ]
    answers, learnt = sum(s.answers for s in sources), sum(len(s.records) for s in sources)
    if learnt < answers:
        words = f"{learnt} of {plural_form(answers, 'assistant turn')} are learnt"
        notices.append(Notice("conversations", f'{words} (data.learn = "{learn}")'))
    notices += [_unanswered(each) for each in sources if each.unanswered]
    for each in sources:
        keys = [f"{key!r} of messages" for key in each.keys]
        if names := [*map(repr, each.columns), *keys]:
            listed = name_items(names, SHOWN_NAMES)
            notices.append(Notice("not used", f"columns of {each.file}: {listed}"))
    return notices


def name_skipped(rows: Sequence[SkippedRow]) -> str:
    """The first skipped rows, each with its reason; "" where there is none."""
    return name_items([f"{row.place}, {row.reason}" for row in rows], SHOWN_ROWS)


def _unanswered(source: SourceRecords) -> Notice:
    count = plural_form(len(source.unanswered), "conversation")
    words = f"what follows the last assistant turn of {count} of {source.file}"
    return Notice("left out", f"{words} (first {source.unanswered[0]})")
