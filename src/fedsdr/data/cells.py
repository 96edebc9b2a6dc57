"""What a cell holds: a text, a list, or JSON."""

import json
import math
from collections.abc import Mapping
from typing import Any

from fedsdr.data.rows import Cells, RowError, json_kind
from fedsdr.data.strict_json import json_fault, parse_json, unicode_fault


def is_filled(value: Any) -> bool:
    """Whether there is something in a cell: null, the NaN of tables and "" are nothing."""
    return not (value is None or value in ("", [], {}) or _is_nan(value))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def cell_text(value: Any, what: str) -> str:
    """A text or number as text; null, and the NaN of tables, as "". what: for the error."""
    if value is None or _is_nan(value):
        return ""
    if isinstance(value, str):
        return _unicode(value, what)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    remedy = "turn it into text, or name another column in fields"
    raise RowError(f"{what} is not text", f"it is {json_kind(value)}", remedy)


def _unicode(text: str, what: str) -> str:
    if fault := unicode_fault(text):
        raise RowError(f"{what} is not valid Unicode", fault, "mend or remove the row")
    return text


def cell_list(cells: Cells, column: str) -> list[Any]:
    """The list in a column; [] where it is empty.

    A CSV file has it as the text of a JSON list, and Arrow's older sequences of objects as an
    object of equally long lists.
    """
    value = json_value(cells.get(column), f"column {column!r}")
    if not is_filled(value):
        return []
    if isinstance(value, Mapping) and all(isinstance(each, list) for each in value.values()):
        lengths = {len(each) for each in value.values()}
        if len(lengths) == 1:
            return [
                dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)
            ]
    if not isinstance(value, list):
        problem = f"column {column!r} is not a list"
        raise RowError(problem, f"it is {json_kind(value)}", "mend or remove the row")
    return value


def without_nulls(value: Any) -> Any:
    """Lists and objects without the keys that hold null."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def json_value(value: Any, what: str) -> Any:
    """The value of a text that holds a JSON list or object; any other value as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    remedy = "mend the JSON or remove the row"
    try:
        found = parse_json(value)
    except (ValueError, RecursionError) as error:
        detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise RowError(f"{what} is a text, but not of valid JSON", detail, remedy) from error
    if reason := json_fault(found):
        raise RowError(f"{what} is a text, but not of valid JSON", reason, remedy)
    return found


def json_text(value: Any, what: str) -> str:
    """A value as JSON, in the order of its keys."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        problem = f"{what} holds what JSON has not"
        raise RowError(problem, str(error), "write it as JSON or remove the row") from error
    return _unicode(text, what)
