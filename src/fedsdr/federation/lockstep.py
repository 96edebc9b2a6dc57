"""Client halves that wait for one another, so that what they ask to be trained can be at once.

An algorithm's client half is a plain function that calls `fit`. Each runs in a thread of its own,
but never two at a time: whoever calls `fit` waits there until all others do, or are done. So
nothing is shared between threads at once, and the order is always the same.
"""

import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from fedsdr.algorithms.contract import Fit, Fitted, Stage

T = TypeVar("T")


class Abandoned(BaseException):
    """Raised in a client half that will get no answer: another one failed."""


class Half(Generic[T]):
    """One client half; it runs only while `go_on` waits for it."""

    def __init__(self, name: str, work: Callable[[Fit], T]) -> None:
        self.name, self.work = name, work
        self.result: T | None = None
        self._answers: SimpleQueue[Fitted | None] = SimpleQueue()
        self._asked: SimpleQueue[Stage | BaseException | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=f"client {name}", daemon=True)

    def go_on(self, answer: Fitted | None = None) -> Stage | None:
        """Start it, or answer its last stage; returns its next stage, None once it is done."""
        if self.thread.ident is None:
            self.thread.start()
        else:
            self._answers.put(answer)
        asked = self._asked.get()
        if isinstance(asked, BaseException):
            asked.add_note(f"at client {self.name!r}")
            raise asked
        return asked

    def end(self) -> None:
        """Leave no thread behind."""
        self._answers.put(None)
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        try:
            self.result = self.work(self._fit)
            self._asked.put(None)
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            self._asked.put(error)

    def _fit(self, stage: Stage) -> Fitted:
        self._asked.put(stage)
        answer = self._answers.get()
        if answer is None:
            raise Abandoned
        return answer


def run_together(
    works: Mapping[str, Callable[[Fit], T]],
    train: Callable[[Mapping[str, Stage]], Mapping[str, Fitted]],
) -> dict[str, Any]:
    """Run all halves to their ends; `train` is given the stages of all that wait, by name."""
    halves = {name: Half(name, work) for name, work in works.items()}
    try:
        asked = {name: half.go_on() for name, half in halves.items()}
        while waiting := {name: stage for name, stage in asked.items() if stage is not None}:
            answers = train(waiting)
            asked = {name: halves[name].go_on(answers[name]) for name in waiting}
    finally:
        for half in halves.values():
            half.end()
    return {name: half.result for name, half in halves.items()}
