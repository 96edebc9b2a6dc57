"""`fedsdr status`: what a federation has done, read from the folder of its server or a client."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsdr.core import files
from fedsdr.core.console import Grid, print_grid
from fedsdr.core.errors import UserError
from fedsdr.core.layout import METRICS_FILE, RECIPE_FILE, RESULT_FILE
from fedsdr.deploy.client.ledger import Ledger, ledger_begun
from fedsdr.deploy.protocol.egress import LOG
from fedsdr.deploy.sites.folder import (
    CLIENT_FILE,
    PRIVATE_FOLDER,
    ROSTER,
    RUN,
    STATUS,
    roster_clients,
)
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.methods import Method, resolve_methods

ROUNDS = ("method", "rounds", "MiB of updates", "MiB of models", "last round", "seconds a round")


def print_status(folder: Path) -> None:
    console = Console(markup=False)  # errors and refusals have brackets, and may be of others
    if (folder / ROSTER).exists():
        for part in server_status(folder):
            if isinstance(part, Grid):
                print_grid(part, console)
            else:
                console.print(part, highlight=False, soft_wrap=True)
    elif (folder / CLIENT_FILE).exists():
        console.print(client_status(folder), highlight=False, soft_wrap=True)
    else:
        raise UserError(
            f"{folder} is the folder of neither a server nor a client: `fedsdr deploy init` or "
            "`simulate` makes them"
        )


def server_status(folder: Path) -> list[str | Grid]:
    """State and last error; a table of rounds, method by method; a table of clients."""
    status = files.read_json(folder / STATUS) if (folder / STATUS).exists() else {}
    since = f", begun {_ago(status['began'])}" if "began" in status else ""
    lines: list[str | Grid] = [f"state: {status.get('state', 'not begun')}{since}"]
    if status.get("error"):
        lines.append(f"last error: {status['error']}")
    rounds = []
    parts: Counter[str] = Counter()
    absent: dict[str, str] = {}
    for resolved in resolve_methods(load_recipe(folder / RECIPE_FILE)):
        method = resolved.within(folder / RUN)
        logged = files.read_json_lines(method.folder / METRICS_FILE)
        rows = [row for row in logged if row["round"]]
        rounds.append([method.name, *_progress(rows, method)])
        for row in rows:
            parts.update(row["clients"])
            absent |= {
                c: f"round {row['round']}: {why}" for c, why in row.get("absent", {}).items()
            }
    clients = [
        [client, str(parts[client]), absent.get(client, "")] for client in roster_clients(folder)
    ]
    return [
        *lines,
        Grid(ROUNDS, rounds),
        Grid(("client", "updates", "last absence"), clients, wraps=True),
    ]


def _progress(rows: Sequence[Mapping[str, Any]], method: Method) -> list[str]:
    up, down, seconds = (
        sum(row["train"][key] for row in rows) for key in ("bytes_up", "bytes_down", "seconds")
    )
    file, planned = method.folder / METRICS_FILE, method.recipe.federation.rounds
    last = _ago(file.stat().st_mtime) if rows else ""
    done = " (finished)" if (method.folder / RESULT_FILE).exists() else ""
    return [
        f"{len(rows)} of {planned}{done}", f"{up / files.MIB:.1f}", f"{down / files.MIB:.1f}", last,
        f"{seconds / len(rows):.3g}" if rows else "",
    ]  # fmt: skip


def client_status(folder: Path) -> str:
    """What has left this client, by its own log."""
    rows = files.read_json_lines(folder / PRIVATE_FOLDER / LOG)
    if not rows:
        return "nothing has left this client"
    counts = [row.get("count", 1) for row in rows]  # of a line for several messages
    sent = sum(row["bytes"] * count for row, count in zip(rows, counts, strict=True)) / files.MIB
    kinds: Counter[str] = Counter()
    for row, count in zip(rows, counts, strict=True):
        if row["operation"] != "-":
            kinds[row["operation"]] += count
    lines = [
        f"{sum(counts)} messages, {sent:.1f} MiB, the last one {_ago(rows[-1]['time'])}",
        "of these: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
    ]
    if ledger_begun(folder / PRIVATE_FOLDER):
        privacy = load_recipe(folder / RECIPE_FILE).privacy
        lines.append(f"privacy: {Ledger(folder / PRIVATE_FOLDER, privacy).describe()}")
    refused = [row for row in rows if row["refused"]]
    if refused:
        total = sum(row.get("count", 1) for row in refused)
        lines.append(f"refused {total}; the last one: {refused[-1]['refused']}")
    return "\n".join([*lines, f"all of them: {folder / PRIVATE_FOLDER / LOG}"])


def _ago(then: float) -> str:
    seconds = max(0, round(time.time() - then))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
