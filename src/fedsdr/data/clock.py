"""Chat templates that print today's date, fixed to one date.

Llama 3's and others call transformers' `strftime_now(format)`. The prompts of a run that is
resumed, evaluated or exported on another day would silently differ. A macro of that name, put
before
the template, replaces the function wherever the template is rendered, and makes the date a part of
the template's text.
"""

from datetime import datetime
from typing import Final

FUNCTION: Final = "strftime_now"
CODES: Final = (  # of strftime, and GNU's without leading zeros
    *"aAbBcdDeFGHIjmMpRSTuUVwWxXyYzZ", *("-d", "-m", "-H", "-I", "-M", "-S"),
)  # fmt: skip


def reads_clock(template: str) -> bool:
    """Whether a template reads the clock; one with a fixed date does not."""
    return FUNCTION in template and f"macro {FUNCTION}" not in template


def with_date(template: str, date: str) -> str:
    """The template, with the clock fixed to midnight of `date` (YYYY-MM-DD)."""
    moment = datetime.fromisoformat(date)
    values = {f"%{code}": moment.strftime(f"%{code}") for code in CODES} | {"%%": "%"}
    filters = "".join(f'|replace("{code}","{value}")' for code, value in values.items())
    # transformers drops the line break after a block: the template still begins a line.
    return f"{{% macro {FUNCTION}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{template}"
