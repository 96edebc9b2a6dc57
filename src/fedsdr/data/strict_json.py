"""Strict JSON: what Python's parser accepts beyond the standard is marked.

Of repeated keys it keeps only the last, and it accepts Infinity, NaN and 1e999. These are parsed to
`NotJson`, so that an error can name their row.
"""

import json
import math
from typing import Any, NamedTuple


class NotJson(NamedTuple):
    """A placeholder for what is not valid JSON."""

    reason: str


def parse_json(text: str) -> Any:
    """A JSON text's value, with `NotJson` in it for what the standard does not have.

    Raises what `json.loads` raises: `ValueError` (`json.JSONDecodeError`), `RecursionError`.
    """
    return json.loads(
        text,
        parse_constant=lambda name: NotJson(f"{name} is no JSON number"),
        parse_float=_number,
        object_pairs_hook=_object,
    )


def json_fault(value: Any) -> str:
    """The reason of the first `NotJson` inside a value; "" where there is none."""
    waiting = [value]
    while waiting:  # not recursive: a text may be nested deeper than Python's stack
        each = waiting.pop()
        if isinstance(each, NotJson):
            return each.reason
        if isinstance(each, dict):
            waiting += reversed(each.values())
        elif isinstance(each, list):
            waiting += reversed(each)
    return ""


def _number(text: str) -> float | NotJson:
    value = float(text)
    return value if math.isfinite(value) else NotJson(f"{text:.40} is beyond all numbers")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | NotJson:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        return NotJson(f"the key {twice!r:.60} stands twice in an object")
    return found
