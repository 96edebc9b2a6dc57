"""The table of benchmarks, and what a list of their names means."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from fedsdr.core.errors import UserError
from fedsdr.evaluate.benchmarks.bbh import BBH
from fedsdr.evaluate.benchmarks.commonsense import COMMONSENSE
from fedsdr.evaluate.benchmarks.crass import CRASS
from fedsdr.evaluate.benchmarks.drop import DROP
from fedsdr.evaluate.benchmarks.gsm8k import GSM8K
from fedsdr.evaluate.benchmarks.mmlu import MMLU
from fedsdr.evaluate.benchmarks.subject import Benchmark, Subject
from fedsdr.evaluate.benchmarks.truthfulqa import TRUTHFULQA

TASKS: Final[dict[str, Benchmark]] = {
    "mmlu": MMLU,
    "bbh": BBH,
    "drop": DROP,
    "crass": CRASS,
    "gsm8k": GSM8K,
    "truthfulqa": TRUTHFULQA,
    **COMMONSENSE,
}
HUB_TASK: Final = "hub:"  # before the name of one of lm-eval's own tasks, which fetches its data


@dataclass(frozen=True)
class ChosenBenchmark:
    """A benchmark by name; subjects: its questions, or none for one of lm-eval's own tasks."""

    name: str
    benchmark: Benchmark | None
    subjects: tuple[Subject, ...] = ()


def choose_benchmarks(
    names: Sequence[str], data: Path | None, key: str = "--tasks"
) -> list[ChosenBenchmark]:
    """Read all that was asked for. Raises `UserError` for a name, folder or file that is wrong.

    data: the folder that holds the files, laid out as `Benchmark.layout` says. key: for messages.
    """
    if not names:
        raise UserError(f"{key} names no benchmark: choose from {_choices()}")
    for name in names:
        if name not in TASKS and not name.startswith(HUB_TASK):
            raise UserError(f"{key}: {name!r} is not known: choose from {_choices()}")
        if names.count(name) > 1:
            raise UserError(f"{key} names {name!r} twice")
    need_lm_eval()
    if hub := [name.removeprefix(HUB_TASK) for name in names if name.startswith(HUB_TASK)]:
        _check_hub(hub, key)
    return [_read(name, data) for name in names]


def _choices() -> str:
    return (
        f"{', '.join(TASKS)}, or {HUB_TASK}NAME for a task of lm-eval's own, fetched from the hub"
    )


def _read(name: str, data: Path | None) -> ChosenBenchmark:
    if name.startswith(HUB_TASK):
        return ChosenBenchmark(name, None)
    benchmark = TASKS[name]
    if data is None or not data.is_dir():
        where = "no data folder was given" if data is None else f"{data} is not a folder"
        raise UserError(f"{name}: {where}: it must hold {benchmark.layout}")
    return ChosenBenchmark(name, benchmark, tuple(benchmark.read(data, benchmark.shots)))


def need_lm_eval() -> None:
    """Raise `UserError` unless lm-evaluation-harness is installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(
            "benchmarks need lm-evaluation-harness: pip install 'fedsdr[eval]'"
        ) from error


@cache
def task_manager() -> Any:
    """lm-eval's index of its own tasks; making it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _check_hub(names: Sequence[str], key: str) -> None:
    known = task_manager().all_tasks
    for name in names:
        if name not in known:
            near = [task for task in known if name[:4].lower() in task.lower()][:8]
            raise UserError(
                f"{key}: lm-eval has no task {name!r}; near it: {', '.join(near) or 'none'}"
            )
