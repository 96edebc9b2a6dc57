"""What a model scored on a benchmark, question by question, and where that is kept.

FOLDER/MODEL/TASK.jsonl  a line a question: id, hash, scores, shots, cut
FOLDER/MODEL/TASK.json   settings and means; written last, so a pair that has it is finished

The scores of single questions are what makes paired comparisons possible later. What models
wrote is not kept: a client's own model may repeat what it was trained on.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.statistics import Estimate, paired_difference, standard_error
from fedsdr.model.identity import Identity, content_digest

LONGEST_FOLDER: Final = 200  # bytes of a folder's name; file systems take 255

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """id: SUBJECT/NUMBER. hash: of its content. scores: metric -> value, 0 to 1 in all shipped
    benchmarks. shots: worked examples in its prompt (None: not known). cut: whether the prompt
    lost its beginning, since even without shots it was longer than the model's context."""

    id: str
    hash: str
    scores: Mapping[str, float]
    shots: int | None
    cut: bool


@dataclass(frozen=True)
class Result:
    """One model on one benchmark; the first metric is the headline.

    The tasks of a group of lm-eval's may have metrics of their own: each is a mean over the
    questions that have it. identity: of the model by its content; {} where it is not known.
    """

    model: str
    task: str
    settings: Settings
    questions: tuple[Question, ...]
    identity: Identity = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(m for question in self.questions for m in question.scores))

    def having(self, metric: str) -> list[Question]:
        return [question for question in self.questions if metric in question.scores]

    def values(self, metric: str) -> list[float]:
        return [question.scores[metric] for question in self.having(metric)]

    def summary(self) -> dict[str, Any]:
        """Means over questions with standard errors; and over subjects, where there are several."""
        shots = self.settings["shots"]
        return {
            "model": self.model,
            "task": self.task,
            "identity": dict(self.identity),
            "settings": dict(self.settings),
            "questions": len(self.questions),
            "fewer_shots": sum(q.shots is not None and q.shots < shots for q in self.questions),
            "cut": sum(q.cut for q in self.questions),
            "metrics": {metric: self._metric(metric) for metric in self.metrics},
        }

    def _metric(self, metric: str) -> dict[str, Any]:
        subjects: dict[str, list[float]] = defaultdict(list)
        for question in self.having(metric):
            subjects[question.id.rpartition("/")[0]].append(question.scores[metric])
        means = {name: math.fsum(each) / len(each) for name, each in subjects.items()}
        values = self.values(metric)
        found = {"mean": math.fsum(values) / len(values), "stderr": standard_error(values)}
        if len(means) > 1:
            found["subject_mean"] = math.fsum(means.values()) / len(means)
        return {**found, "subjects": means}


def paired_results(a: Result, b: Result, metric: str) -> Estimate:
    """Mean of a - b over the same questions, with the 95 % interval of the paired t statistic.

    Raises `UserError` where the two were not asked the same questions in the same way, or not
    scored in the same way.
    """
    check_paired(a, b)
    if [q.id for q in a.having(metric)] != [q.id for q in b.having(metric)]:
        raise UserError(
            f"{a.task}: {a.model} and {b.model} cannot be paired: not the same questions have a "
            f"score {metric!r}: evaluate both anew"
        )
    return paired_difference(a.values(metric), b.values(metric))


def check_paired(a: Result, b: Result) -> None:
    """Raise `UserError` unless the two were asked the same questions in the same way."""
    if changed := [k for k in a.settings if a.settings[k] != b.settings.get(k)]:
        if (key := changed[0]) == "benchmark":
            raise _other_questions(a, b)
        raise UserError(
            f"{a.task}: {a.model} and {b.model} cannot be paired: {key} is {a.settings[key]} "
            f"against {b.settings.get(key)}: evaluate both with the same options"
        )
    if [(q.id, q.hash) for q in a.questions] != [(q.id, q.hash) for q in b.questions]:
        raise _other_questions(a, b)


def _other_questions(a: Result, b: Result) -> UserError:
    return UserError(
        f"{a.task}: {a.model} and {b.model} cannot be paired: they were not asked the same "
        "questions with the same shots: evaluate both on the same data folder"
    )


def result_path(folder: Path, model: str, task: str) -> Path:
    """The file of a result; names are quoted, for they may hold colons and slashes."""
    name = quote(model, safe="")
    if len(name) > LONGEST_FOLDER:
        name = f"{name[:LONGEST_FOLDER]}-{content_digest(model)[:10]}"
    return folder / name / f"{quote(task, safe='')}.json"


def write_result(folder: Path, result: Result) -> None:
    """Write a result's questions, then its summary, which marks it as finished."""
    path = result_path(folder, result.model, result.task)
    files.write_json_lines(path.with_suffix(".jsonl"), [asdict(q) for q in result.questions])
    files.write_json(path, result.summary())


def read_result(folder: Path, model: str, task: str) -> Result | None:
    """A finished result, or None."""
    path = result_path(folder, model, task)
    if not path.exists():
        return None
    rows = files.read_json_lines(path.with_suffix(".jsonl"))
    try:
        summary = files.read_json(path)
        questions = tuple(Question(**row) for row in rows)
        complete = len(questions) == summary["questions"]
        result = Result(model, task, summary["settings"], questions, summary.get("identity", {}))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a result of fedsdr eval: delete it") from error
    if not complete or not questions:
        raise UserError(f"{path} and its .jsonl do not fit each other: delete both")
    return result
