"""Renders benchmarks/results into docs/performance.md: no figure there is typed by hand.

    python benchmarks/tables.py

What stands between `<!-- table NAME/TABLE -->` and `<!-- end -->` is rewritten from the table of
that name in benchmarks/results/NAME.json, goals/all from what `goals.py` finds in all of them.
"""

import re
from pathlib import Path
from typing import Any

import goals
from measure import RESULTS, Row, load

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
MARKED = re.compile(r"<!-- table (\w+)/(\w+) -->\n.*?<!-- end -->", re.DOTALL)


def rendered(document: str) -> str:
    """The document with every marked table as its result says."""
    return MARKED.sub(lambda found: section(found[1], found[2]), document)


def section(name: str, table: str) -> str:
    """One marked table; a result that is not there is said to be missing."""
    if name == "goals":
        return f"<!-- table goals/all -->\n{markdown(goals.rows())}\n<!-- end -->"
    result = load(name) if (RESULTS / f"{name}.json").exists() else {"tables": {}}
    if table in result["tables"]:
        body = f"{markdown(result['tables'][table])}\n\n{caption(result)}"
        if why := goals.fault(name, table):
            body += f"\nTo be measured again: {why}."
    else:
        body = f"Not measured yet: `python benchmarks/{name}.py`."
    return f"<!-- table {name}/{table} -->\n{body}\n<!-- end -->"


def markdown(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: str | float | int) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def caption(result: dict[str, Any]) -> str:
    its = result["machine"]
    lengths = f", lengths: {result['lengths']}" if "lengths" in result else ""
    return (
        f"`{result['command']}`: {its['processor']}, {its['cores']} cores, {its['threads']} "
        f"threads, torch {its['torch']}, transformers {its['transformers']}, {its['day']}{lengths}."
    )


def main() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(rendered(document), encoding="utf-8")


if __name__ == "__main__":
    main()
