"""Chat templates that print the date of today, at a date that stays.

Llama 3's and others' ask transformers for it by `strftime_now(format)`. Prompts of a run that goes
on tomorrow, of its evaluation and of its export would be others, and nothing would say so. A macro
of that name before a template takes the function's place wherever the template is rendered, and
whatever knows a template by its text knows the date too.
"""

from datetime import datetime
from typing import Final

FUNCTION: Final = "strftime_now"
CODES: Final = (  # of strftime, and GNU's without leading zeros
    *"aAbBcdDeFGHIjmMpRSTuUVwWxXyYzZ", *("-d", "-m", "-H", "-I", "-M", "-S"),
)  # fmt: skip


def reads_clock(template: str) -> bool:
    """Whether a template asks what time it is; one that has been given a date does not."""
    return FUNCTION in template and f"macro {FUNCTION}" not in template


def with_date(template: str, date: str) -> str:
    """The template, for which it is always midnight of that date (YYYY-MM-DD)."""
    moment = datetime.fromisoformat(date)
    values = {f"%{code}": moment.strftime(f"%{code}") for code in CODES} | {"%%": "%"}
    filters = "".join(f'|replace("{code}","{value}")' for code, value in values.items())
    # transformers drops the line break after a block: the template still begins a line.
    return f"{{% macro {FUNCTION}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{template}"
