"""Tasks for lm-evaluation-harness: our benchmarks' subjects, and lm-eval's own tasks by name.

Prompts are built by lm-eval from our definitions. Where a prompt is longer than the model's
context, shots are left out, the last one first, as declare-lab/instruct-eval does; a question that
is too
long even without shots loses its beginning, and is counted. Imports lm-eval: import it late.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import handle_non_serializable, hash_string

from fedsdr.core.errors import UserError
from fedsdr.evaluate.benchmarks.harness_model import StreamLM
from fedsdr.evaluate.benchmarks.subject import Benchmark, ChoiceLikelihoods, Subject
from fedsdr.evaluate.benchmarks.table import task_manager

FEWSHOT_SEED = 1234  # lm-eval's own default, for its own tasks; ours draw nothing
HASH = 16  # characters of a question's hash that are kept


class FittingTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """A subject of one of our benchmarks, whose prompts take as many shots as fit.

    used: prompt -> number of shots in it. lengths: hash of a question -> tokens of its choices.
    """

    def __init__(self, name: str, benchmark: Benchmark, subject: Subject, lm: StreamLM) -> None:
        self.benchmark, self.lm = benchmark, lm
        self.tokens = min(benchmark.tokens, lm.max_length // 2)
        self.used: dict[str, int] = {}
        self.lengths: dict[str, list[int]] = {}
        super().__init__(config=task_config(name, benchmark, subject, self.tokens, self.lengths))

    def fewshot_context(self, doc: Any, num_fewshot: int, **options: Any) -> str:
        benchmark = self.benchmark
        # With a chat template the delimiter is the template's; without, a space.
        space = "" if options.get("apply_chat_template") else " "
        texts = [space + text for text in benchmark.choices(doc)] if benchmark.choices else []
        for shots in range(num_fewshot, -1, -1):
            prompt = str(super().fewshot_context(doc, num_fewshot=shots, **options))
            pairs = [self.lm._encode_pair(prompt, text) for text in texts]
            if self.lm.fits(prompt, pairs, self.tokens):
                break
        self.used[prompt] = shots
        self.lengths[content_hash(doc)] = [len(after) for _, after in pairs]
        return prompt


def task_config(
    name: str,
    benchmark: Benchmark,
    subject: Subject,
    tokens: int,
    lengths: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """lm-eval's description of a subject; all its functions are ours.

    tokens: of a written answer at most. lengths: hash of a question -> tokens of its choices.
    """
    choose = benchmark.choices

    def splits(**_: object) -> dict[str, Dataset]:
        # `questions` as shots too where there are none: lm-eval wants a split, and takes 0 of it.
        shots = subject.shots or subject.questions
        return {"shots": _table(shots), "questions": _table(subject.questions)}

    def results(doc: Any, said: Any) -> dict[str, float]:
        nats = [value for value, _ in said] if choose else []
        answer = ChoiceLikelihoods(nats, lengths[content_hash(doc)]) if choose else said[0]
        scores = benchmark.score(doc, answer)
        return {metric: scores[metric] for metric in benchmark.metrics}

    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": splits,
        "test_split": "questions",
        "fewshot_split": "shots",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": benchmark.shots,
        "description": subject.introduction,
        "doc_to_text": benchmark.prompt,
        "doc_to_target": benchmark.target,
        "process_results": results,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in benchmark.metrics
        ],
    }
    if choose:
        return config | {"output_type": "multiple_choice", "doc_to_choice": choose}
    how = {"until": list(benchmark.until), "max_gen_toks": tokens, "do_sample": False}
    return config | {"output_type": "generate_until", "generation_kwargs": how}


def _table(rows: Sequence[Any]) -> Dataset:
    return Dataset.from_list([dict(row) for row in rows])


def hub_tasks(name: str) -> dict[str, Any]:
    """One of lm-eval's own tasks, or the tasks of one of its groups; fetches their data."""
    try:
        tasks: dict[str, Any] = task_manager().load([name])["tasks"]
    except Exception as error:  # whatever the hub, `datasets` or a task's own code raises
        raise UserError(
            f"cannot load lm-eval's task {name!r}: {error}: "
            "its data must be in the Hugging Face cache or the hub within reach"
        ) from error
    for task in tasks.values():
        if task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(FEWSHOT_SEED)
    return tasks


def content_hash(doc: Any) -> str:
    """The hash that lm-eval's log gives a question."""
    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))[:HASH]


def hub_content(task: Any) -> list[Any]:
    """All that the scores of one of lm-eval's own tasks depend on, apart from the model."""
    shots = task.fewshot_docs() if task.config.num_fewshot else []
    docs = [content_hash(doc) for rows in (task.eval_docs, shots) for doc in rows]
    # Functions without source text are printed with where they lie in memory.
    return [re.sub("0x[0-9a-f]+", "", str(task.config.to_dict())), docs]
