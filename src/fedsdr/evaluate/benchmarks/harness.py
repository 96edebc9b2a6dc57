"""Benchmarks of the model in memory by lm-evaluation-harness, question by question.

Imports lm-eval: import it late.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from lm_eval.evaluator import evaluate

from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean, Metrics
from fedsdr.core.progress import Reporter
from fedsdr.evaluate.benchmarks.harness_model import HarnessOptions, StreamLM
from fedsdr.evaluate.benchmarks.harness_tasks import (
    HASH,
    FittingTask,
    content_hash,
    hub_content,
    hub_tasks,
)
from fedsdr.evaluate.benchmarks.results import Question, Result
from fedsdr.evaluate.benchmarks.table import HUB_TASK, ChosenBenchmark
from fedsdr.model.base import LoadedModel
from fedsdr.model.identity import content_digest


class Suite:
    """Benchmarks with their questions loaded, to be run on models one after another."""

    def __init__(
        self,
        chosen: Sequence[ChosenBenchmark],
        base: LoadedModel,
        options: HarnessOptions,
        reporter: Reporter,
    ) -> None:
        self.options = options
        with _quiet():
            self.lm = StreamLM(base, options, reporter)
            self.tasks = {each.name: self._tasks(each) for each in chosen}
        self.shots = {each.name: each.benchmark.shots for each in chosen if each.benchmark}
        self._identities = {each.name: self._identity(each) for each in chosen}

    def _tasks(self, chosen: ChosenBenchmark) -> dict[str, Any]:
        if chosen.benchmark is None:
            return hub_tasks(chosen.name.removeprefix(HUB_TASK))
        names = [f"{chosen.name}_{subject.name}" for subject in chosen.subjects]
        return {
            name: FittingTask(name, chosen.benchmark, subject, self.lm)
            for name, subject in zip(names, chosen.subjects, strict=True)
        }

    def _identity(self, chosen: ChosenBenchmark) -> str:
        if chosen.benchmark is not None:
            return content_digest(chosen.benchmark.content(chosen.subjects))
        return content_digest(
            [metadata.version("lm_eval"), *map(hub_content, self.tasks[chosen.name].values())]
        )

    def identities(self) -> Mapping[str, str]:
        """Benchmark -> digest of its questions, its shots, and how they are asked and scored."""
        return self._identities

    def settings(self, task: str) -> dict[str, Any]:
        """The settings that must agree between two results for their questions to be paired."""
        shots = self.shots.get(task)
        if shots is None:
            shots = max(each.config.num_fewshot or 0 for each in self.tasks[task].values())
        options, lm = self.options, self.lm
        return {
            "shots": shots,
            "limit": options.limit,
            "chat": options.chat,
            "bos": lm.begins_with_bos,
            "context": lm.max_length,
            "benchmark": self._identities[task],
        }

    def questions(self, task: str) -> list[Question]:
        """The questions without scores, to check beforehand whether results can be paired."""
        subjects = {name.removeprefix(f"{task}_"): each for name, each in self.tasks[task].items()}
        return [
            Question(f"{subject}/{number}", content_hash(doc), {}, None, False)
            for subject, each in subjects.items()
            for number, doc in each.doc_iterator(limit=self.options.limit)
        ]

    def scores(self, model: str) -> Metrics:
        """The headline metric of each benchmark, in percent."""
        found = {}
        for task in self.tasks:
            result = self.run(task, model)
            values = result.values(result.metrics[0])
            found[task] = Mean(100.0 * sum(values), len(values))
        return found

    def run(self, task: str, model: str) -> Result:
        """Run a benchmark on the model with its present streams; model: its name in the result."""
        tasks, options, lm = self.tasks[task], self.options, self.lm
        lm.label, lm.cut = f"{task}: {model}", set()
        with _quiet():
            found = evaluate(
                lm=lm,
                task_dict={"tasks": tasks, "groups": {}},
                limit=options.limit,
                bootstrap_iters=0,  # errors are ours, from the scores of single questions
                apply_chat_template=options.chat,
                fewshot_as_multiturn=options.chat,
            )
        questions = [
            question
            for name, samples in found["samples"].items()
            for question in _questions(name.removeprefix(f"{task}_"), samples, tasks[name], lm.cut)
        ]
        if not questions:
            raise UserError(f"{task} has no score for single questions: it cannot be evaluated")
        return Result(model, task, self.settings(task), tuple(questions))


def _questions(
    subject: str, samples: Sequence[dict[str, Any]], task: Any, cut: set[str]
) -> Iterator[Question]:
    """The questions in order, with the scores of all of lm-eval's filters."""
    scores: dict[int, dict[str, float]] = {}
    for sample in samples:
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        mine = scores.setdefault(sample["doc_id"], {})
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float):
                mine[metric + suffix] = float(sample[metric])
    first = {sample["doc_id"]: sample for sample in reversed(samples)}
    for number in sorted(scores):
        if scores[number]:
            prompts = {str(arguments[0]) for arguments in first[number]["arguments"]}
            shots = task.used[min(prompts)] if isinstance(task, FittingTask) else None
            yield Question(
                f"{subject}/{number}",
                first[number]["doc_hash"][:HASH],
                scores[number],
                shots,
                bool(prompts & cut),
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's progress bars and warnings."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
