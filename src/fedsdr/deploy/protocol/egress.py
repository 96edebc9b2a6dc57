"""The egress audit: what may leave a client, by kind, and the log of all that has left.

An answer is checked against the declaration of its operation before it is sent, and written into
`egress.jsonl`, which the client's owner can read, before a byte of it leaves. What is not declared
is refused. A recipe may narrow the declarations (`declared`): under differential privacy no number
leaves but the change that noise was added to.
"""

import fnmatch
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from fedsdr.algorithms.contract import Algorithm, Round, Update, check_update
from fedsdr.core import files
from fedsdr.core.adapters import Adapter, size_in_bytes
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import drop_weights
from fedsdr.core.repeats import RepeatLimit
from fedsdr.deploy.protocol.messages import Answer, Operation
from fedsdr.recipe.sections.recipe import Recipe

LOG: Final = "egress.jsonl"
_Row = Mapping[str, Any]


class Declared(NamedTuple):
    """What an operation's answer may carry.

    change: whether tensors, the change of what is shared. weight: whether the update's weight.
    counts: whether weights count records and tokens; where not, each of them is 1 or 0.
    metrics, facts: patterns of the names of numbers and short texts.
    """

    change: bool = False
    weight: bool = False
    counts: bool = True
    metrics: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


JUDGED: Final = (
    "loss", "loss/*", "client_facts", "changed_facts", "general", "general_kept", "hallucination",
    "inventions", "refusals", "base_style", "house_style", "length",
)  # fmt: skip
DECLARED: Final[Mapping[Operation, Declared]] = {
    "hello": Declared(facts=("model", "fedsdr", "journal")),
    "prepare": Declared(weight=True, metrics=("rewritten",)),
    "fit": Declared(
        change=True, weight=True, metrics=("loss/*", "conflict/cosine", "norm/R", "norm/S")
    ),
    "evaluate": Declared(metrics=JUDGED),
    "finish": Declared(metrics=JUDGED),
}


class UndeclaredError(UserError):
    """Something that may not leave was about to."""


def allowed_contents(operation: Operation, recipe: Recipe) -> Declared:
    """What an answer may carry under a method's recipe.

    Under differential privacy, no metrics and no counts: noise is added to the change alone, and
    a number without noise would be in no epsilon. Where records are not to be counted, no counts.
    """
    most = DECLARED[operation]
    if recipe.privacy.mode != "none":
        return most._replace(counts=False, metrics=())
    return most._replace(counts=recipe.federation.sample_counts)


def without_undeclared(answer: Answer, recipe: Recipe) -> Answer:
    """`answer` without the metrics and counts that stay at the client under a method's recipe."""
    allowed = allowed_contents(answer.operation, recipe)
    if not allowed.metrics:
        answer = replace(answer, metrics={})
    if not allowed.counts:
        weight = 1.0 if answer.weight else 0.0
        answer = replace(answer, weight=weight, metrics=drop_weights(answer.metrics))
    return answer


def check_declared(answer: Answer, recipe: Recipe, private: Iterable[Adapter] = ()) -> None:
    """Raise `UndeclaredError` for anything that the answer's operation does not declare.

    recipe: of the answer's method. private: adapters that stay with this client; none of their
    tensors may be in the answer.
    """
    allowed = allowed_contents(answer.operation, recipe)
    if answer.change and not allowed.change:
        raise UndeclaredError(f"tensors may not leave in an answer to {answer.operation!r}")
    if answer.weight and not allowed.weight:
        raise UndeclaredError(f"a weight may not leave in an answer to {answer.operation!r}")
    weights = {answer.weight, *(mean.weight for mean in answer.metrics.values())}
    if not allowed.counts and not weights <= {0.0, 1.0}:
        raise UndeclaredError(f"a count may not leave in an answer to {answer.operation!r}")
    for names, patterns in ((answer.metrics, allowed.metrics), (answer.facts, allowed.facts)):
        for name in names:
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                raise UndeclaredError(
                    f"{name!r} may not leave in an answer to {answer.operation!r}"
                )
    for adapter in private:
        for key, tensor in adapter.items():
            if bool(tensor.any()) and any(_same(tensor, each) for each in answer.change.values()):
                raise UndeclaredError(f"{key!r} is private and may not leave")


def check_tensors(answer: Answer, algorithm: Algorithm, first: Adapter) -> None:
    """Raise `UndeclaredError` unless the tensors have the names, shapes and dtypes of an update.

    first: an adapter of the client's model. What the server takes in is checked by the same rule.
    """
    like = algorithm.uploads(algorithm.init(first), Round(answer.round, 0))
    try:
        check_update(answer.client, Update(answer.change, answer.weight), like, algorithm.ranks)
    except ValueError as error:
        raise UndeclaredError(f"this may not leave: {error}") from error


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


class Audit:
    """The log of one client, readable by its owner alone: a line for each message that leaves.

    A message that leaves again, a greeting, a refusal and a request that is refused are one line
    a minute for each kind, with a "count" where there were several: whatever is sent to a client,
    and however often, the log grows by a bounded number of lines a minute. A process that is
    killed leaves out counts of its last minute.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: gives the seconds by which repeats are counted."""
        self.path = folder / LOG
        self._repeated: RepeatLimit[_Row] = RepeatLimit(kinds=None, clock=clock)
        self._words: RepeatLimit[_Row] = RepeatLimit(clock=clock)

    def sent(self, answer: Answer, payload: bytes, digest: str) -> None:
        """Note what is about to leave."""
        row = {
            "operation": answer.operation,
            "run": answer.run,
            "method": answer.method,
            "round": answer.round,
            "bytes": len(payload),
            "digest": digest,
            "tensors": {
                key: {
                    "shape": list(tensor.shape),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "bytes": size_in_bytes({key: tensor}),
                }
                for key, tensor in answer.change.items()
            },
            "weight": answer.weight,
            "metrics": sorted(answer.metrics),
            "facts": dict(answer.facts),
            "refused": answer.refused,
        }
        if answer.operation == "hello" or answer.refused:  # says nothing of the records
            kind = f"{answer.operation} {answer.method} {answer.refused}"
            self._append(self._words.add(kind, row))
        else:
            self._append(self._repeated.add(f"{answer.run} {digest}", row))

    def refused(self, reason: str) -> None:
        """Note a request that was not from this client's server, or no request at all."""
        row = {"operation": "-", "bytes": 0, "refused": reason}
        self._append(self._words.add(f"- {reason}", row))

    def write_rest(self) -> None:
        """Write the counts that are not in the log yet; to be called before a process ends."""
        self._append([*self._repeated.rest(), *self._words.rest()])

    def _append(self, reports: Sequence[tuple[_Row, int]]) -> None:
        if not reports:
            return
        if not self.path.exists():
            files.write_text(self.path, "", private=True)
        now = round(time.time(), 3)
        rows = [
            {"time": now, **row, **({"count": count} if count > 1 else {})}
            for row, count in reports
        ]
        files.append_json_lines(self.path, rows)
