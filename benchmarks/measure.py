"""Contenders side by side: alternated runs, medians of ratios, results that name their machine.

A benchmark is a script that calls `compare` for each setting and `save`s the rows. `tables.py`
renders them into docs/performance.md. Rows are flat dictionaries; their keys are the columns.

    rows = compare("tiny", {"ours": run_ours, "theirs": run_theirs}, "tokens", against="theirs")
    save("training", {"speed": rows})

Loads of a machine come and go, so contenders take turns, and what counts is the ratio within one
turn: the order is reversed in every other turn, and each contender warms up once before.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedsdr.core.environment import git_commit

RESULTS = Path(__file__).parent / "results"
Row = dict[str, str | float | int]
Rows = Sequence[Row]
Contender = Callable[[], float]  # does some work and returns how much it was


def arguments(description: str) -> argparse.ArgumentParser:
    """What every script takes."""
    parser = argparse.ArgumentParser(
        description=description.strip().splitlines()[0], epilog="Results go into benchmarks/results"
    )
    parser.add_argument("--quick", action="store_true", help="in miniature; results are not kept")
    return parser


def compare(
    setting: str,
    contenders: Mapping[str, Contender],
    unit: str,
    against: str,
    runs: int = 5,
    device: str = "cpu",
    warm: bool = True,
    also: str | None = None,
) -> list[Row]:
    """A row for each contender: median rate with its spread, and how often `against`'s rate it is.

    warm: each runs once before; a script whose runs are long may warm up with less work itself.
    `times` is the median over turns of the ratio within a turn, `least` and `most` its spread.
    also: a second contender to be compared with, by the median alone.
    """
    rates = alternate(contenders, runs, device, warm)
    rows: list[Row] = []
    for name, its in rates.items():
        ratios = within_turns(its, rates[against])
        row: Row = {
            "setting": setting,
            "contender": name,
            f"{unit}/s": three(statistics.median(its)),
            "slowest": three(min(its)),
            "fastest": three(max(its)),
            "times": three(statistics.median(ratios)),
            "least": three(min(ratios)),
            "most": three(max(ratios)),
        }
        if also is not None:
            row[f"times {also}"] = three(statistics.median(within_turns(its, rates[also])))
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def within_turns(its: Sequence[float], base: Sequence[float]) -> list[float]:
    return [mine / other for mine, other in zip(its, base, strict=True)]


def alternate(
    contenders: Mapping[str, Contender], runs: int = 5, device: str = "cpu", warm: bool = True
) -> dict[str, list[float]]:
    """Each contender's rates, one a turn: amount of work over seconds."""
    for work in contenders.values() if warm else ():
        rate(work, device)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            rates[name].append(rate(contenders[name], device))
    return rates


def rate(work: Contender, device: str = "cpu") -> float:
    """Work a second."""
    wait(device)
    began = time.perf_counter()
    amount = work()
    wait(device)
    return amount / (time.perf_counter() - began)


def wait(device: str) -> None:
    """Until a device has done what it was asked to."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()


def three(value: float) -> float:
    """Three digits that count: more would claim a precision that no run has."""
    return float(f"{value:.3g}") if abs(value) < 100 else round(value)


def save(
    name: str,
    tables: Mapping[str, Rows],
    device: str = "cpu",
    quick: bool = False,
    lengths: str | None = None,
) -> None:
    """Write benchmarks/results/NAME.json; a quick run is printed alone.

    lengths: whose the texts' lengths are, where a script draws them.
    """
    result = {
        "command": " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
        "machine": machine(device),
        **({} if lengths is None else {"lengths": lengths}),
        "tables": {key: list(rows) for key, rows in tables.items()},
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def peak() -> float:
    """This process's largest memory so far, in MiB.

    Linux counts in `ru_maxrss` what the process that started this one held: not in VmHWM.
    """
    told = Path("/proc/self/status")
    if told.exists():
        for line in told.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def machine(device: str = "cpu") -> dict[str, str | int | None]:
    """What the figures are of."""
    return {
        "processor": torch.cuda.get_device_name() if device.startswith("cuda") else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: metadata.version(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
        "fedsdr": git_commit(apart="benchmarks/results"),
        "day": datetime.now(UTC).date().isoformat(),
    }


def processor() -> str:
    """The processor's name as the system tells it."""
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load(name: str) -> dict[str, Any]:
    """A saved result."""
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded
