"""Mutation testing: how many small changes of the code does a test notice? `make mutants`.

mutmut writes the mutants, each with one place changed (a comparison, a constant, an argument left
out), and finds which tests reach which function; pyproject.toml says of which files and with which
tests. This script runs a random sample of them and lists those that no test noticed in
`.ci/mutants.csv`. A mutant that does what the code does can be noticed by no test: a reason in that
list takes it out of the score, and is kept for as long as the list has the same change.

What has a verdict in `mutants/` is not run again: an interrupted sample goes on. `--again` looks
at the survivors once more when there are new tests.
"""

import argparse
import csv
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SURVIVORS = ROOT / ".ci" / "mutants.csv"
MUTMUT = Path(sys.executable).parent / "mutmut"
ONE_SMALL_FILE = "fedsdr.algorithms.uploads.*"
KILLED = ("killed", "timeout", "segfault")


class Survivor(NamedTuple):
    """A change that no test noticed; `reason` says why none can, "" where one could."""

    function: str
    before: str
    after: str
    reason: str = ""


class Row(NamedTuple):
    """Mutants of a room: how many of the sample, how many killed, how many equal to the code."""

    room: str
    mutants: int
    killed: int
    equivalent: int

    @property
    def score(self) -> float:
        return self.killed / max(1, self.mutants - self.equivalent)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of a sample of the code.")
    parser.add_argument("--sample", type=int, default=400, help="how many mutants (400)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--again", action="store_true", help="run survivors once more")
    options = parser.parse_args()
    run_mutants([ONE_SMALL_FILE], options.jobs)  # writes all mutants, and times every test
    statuses = read_statuses()
    sample = draw_sample(statuses, options.sample, options.seed)
    if left := [name for name in sample if needs_run(statuses[name], options.again)]:
        run_mutants(left, options.jobs)
        statuses = read_statuses()
    survived = {
        name: read_change(name, mutmut("show", name))
        for name in sample
        if statuses[name] not in KILLED
    }
    found = with_reasons(survived, load_survivors(SURVIVORS))
    save_survivors(SURVIVORS, found.values())
    print(format_table(count_rooms({name: statuses[name] for name in sample}, found)))


def mutmut(*words: str) -> str:
    """What a command of mutmut prints."""
    return subprocess.run(
        [MUTMUT, *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def run_mutants(names: Sequence[str], jobs: int) -> None:
    """Runs mutants by name or pattern; their verdicts are kept in mutants/."""
    subprocess.run([MUTMUT, "run", "--max-children", str(jobs), *names], cwd=ROOT, check=True)


def read_statuses() -> dict[str, str]:
    """All mutants by name: killed, survived, timeout, no tests, not checked, ..."""
    lines = mutmut("results", "--all", "true").splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if ": " in line)


def draw_sample(names: Mapping[str, str], size: int, seed: int) -> list[str]:
    """The same names for the same code and seed; sorted."""
    every = sorted(names)
    return sorted(random.Random(seed).sample(every, min(size, len(every))))


def needs_run(status: str, again: bool) -> bool:
    return status == "not checked" or (again and status not in KILLED)


def read_change(name: str, shown: str) -> Survivor:
    """From what `mutmut show` prints, a diff: the lines that went and those that came."""
    lines = [line for line in shown.splitlines() if not line.startswith(("---", "+++"))]
    before, after = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    return Survivor(function_of(name), before, after)


def function_of(name: str) -> str:
    """Of "fedsdr.core.adapters.x_add__mutmut_3", core.adapters.add; a method's class with a dot."""
    module, _, mangled = name.rpartition("__mutmut_")[0].rpartition(".")
    function = re.sub(r"^xǁ(\w+?)ǁ", r"\1.", mangled).removeprefix("x_")
    return f"{module.removeprefix('fedsdr.')}.{function}"


def room_of(function: str) -> str:
    """The folder of a function's file: deploy/protocol, core."""
    parts = function.split(".")
    return "/".join(parts[:2]) if parts[0] == "deploy" else parts[0]


def with_reasons(
    survived: Mapping[str, Survivor], known: Sequence[Survivor]
) -> dict[str, Survivor]:
    """Survivors with the reasons that the list gives for the same changes."""
    reasons = {each[:3]: each.reason for each in known}
    return {
        name: each._replace(reason=reasons.get(each[:3], "")) for name, each in survived.items()
    }


def load_survivors(path: Path) -> list[Survivor]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [Survivor(**row) for row in csv.DictReader(file)]


def save_survivors(path: Path, survivors: Iterable[Survivor]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Survivor._fields)
        writer.writerows(sorted(survivors))


def count_rooms(statuses: Mapping[str, str], survived: Mapping[str, Survivor]) -> list[Row]:
    """A row for each room of a sample, and one for all."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, status in statuses.items():
        kind = "killed" if status in KILLED else "survived"
        if name in survived and survived[name].reason:
            kind = "equivalent"
        for room in (room_of(function_of(name)), "all"):
            counts[room, kind] += 1
    rooms = sorted({room for room, _ in counts}, key=lambda room: (room == "all", room))
    return [
        Row(
            room,
            sum(counts[room, kind] for kind in ("killed", "survived", "equivalent")),
            counts[room, "killed"],
            counts[room, "equivalent"],
        )
        for room in rooms
    ]


def format_table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| room | mutants | killed | equivalent | score |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.room} | {row.mutants} | {row.killed} | {row.equivalent} | {row.score:.0%} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
