"""Strict JSON: what Python's parser accepts beyond the standard is marked.

Of repeated keys it keeps only the last, and it accepts Infinity, NaN and 1e999. These are parsed to
`NotJson`, so that an error can name their row.
"""

import json
import math
from collections.abc import Iterator
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
    return next((each.reason for each in _leaves(value) if isinstance(each, NotJson)), "")


def unicode_fault(value: Any) -> str:
    """What is wrong with the first text in a JSON value that is not valid Unicode; "" where there
    is none. A key is a text, too."""
    return next(filter(None, map(_half_surrogate, _leaves(value))), "")


def _half_surrogate(leaf: Any) -> str:
    """JSON may escape one half of a pair alone, which UTF-8 cannot write."""
    if not isinstance(leaf, str) or leaf.isascii():
        return ""
    try:
        leaf.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair at character {error.start + 1}"
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    """All keys and values inside a value that hold no others, in order."""
    waiting = [value]
    while waiting:  # not recursive: a text may be nested deeper than Python's stack
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [part for pair in reversed(each.items()) for part in reversed(pair)]
        elif isinstance(each, list):
            waiting += reversed(each)
        else:
            yield each


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
