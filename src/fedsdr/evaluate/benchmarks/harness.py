"""lm-evaluation-harness around the model in memory. Imports lm-eval: import it late.

The prompts are built by lm-eval from our definitions. Where a prompt is longer than the model's
context, shots are left out, the last one first, as declare-lab/instruct-eval does; only a
question that is too long by itself loses its beginning, and is counted.
"""

import contextlib
import copy
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import handle_non_serializable, hash_string

from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean, Metrics
from fedsdr.core.progress import Bar, Reporter
from fedsdr.data.records import Turn
from fedsdr.evaluate.benchmarks.results import Question, Result
from fedsdr.evaluate.benchmarks.subject import Benchmark, Subject
from fedsdr.evaluate.benchmarks.table import HUB_TASK, ChosenBenchmark, task_manager
from fedsdr.generation.batched import pads_left
from fedsdr.model.base import LoadedModel
from fedsdr.model.identity import content_digest
from fedsdr.model.trials import passes_trial

FEWSHOT_SEED = 1234  # lm-eval's own default, for its own tasks; ours draw nothing
HASH = 16  # characters of a question's hash that are kept


@dataclass(frozen=True)
class HarnessOptions:
    """limit: at most so many questions of each subject, the first ones; None is all.
    chat: whether prompts go through the model's chat template, shots as turns.
    bos: whether the tokenizer's special tokens go before prompts; None: as the tokenizer does by
        itself, and with a chat template, which brings its own, none.
    """

    limit: int | None = None
    chat: bool = False
    bos: bool | None = None
    batch_size: int = 8


class StreamLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """The model as it stands, whatever streams are active: they work below its linear layers."""

    def __init__(self, base: LoadedModel, options: HarnessOptions, reporter: Reporter) -> None:
        tokenizer = copy.deepcopy(base.chat.tokenizer)  # lm-eval sets its pad token
        tokenizer.chat_template = base.chat.template  # which it asks itself to go on with an answer
        bos = False if options.chat and options.bos is None else options.bos
        batch = (
            options.batch_size if passes_trial(base.model, pads_left) else 1
        )  # lm-eval pads as well
        super().__init__(
            pretrained=base.model,
            tokenizer=tokenizer,
            max_length=base.context,
            batch_size=batch,
            add_bos_token=bos,
        )
        self.chat, self.reporter, self.label = base.chat, reporter, ""
        self.cut: set[str] = set()

    @property
    def puts_bos(self) -> bool:
        """Whether plain prompts begin with the token that begins a text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and bool(self.tok_encode("a")[:1] == [bos])

    def fits(self, context: str, continuations: Sequence[str], tokens: int) -> bool:
        """Whether a prompt leaves room for each continuation, or for `tokens` new tokens."""
        if not continuations:
            return bool(len(self.tok_encode(context)) <= self.max_length - tokens)
        pairs = [self._encode_pair(context, text) for text in continuations]
        # The last token is predicted and not read.
        return bool(max(len(a) + len(b) for a, b in pairs) <= self.max_length + 1)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The template that the model was trained with, as in `ChatFormat`."""
        if not add_generation_prompt:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        turns = tuple(Turn(each["role"], each["content"]) for each in chat_history)  # type: ignore[arg-type]
        return self.chat.prompt_text(turns)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        with self._bar(len(requests)):
            return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
        for (context, _), before, after in requests:
            if len(before) + len(after) > self.max_length + 1:
                self.cut.add(context)
        return super()._loglikelihood_tokens(requests, *args, **options)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        for context, how in (request.args for request in requests):
            room = self.max_length - how.get("max_gen_toks", self.max_gen_toks)
            if len(self.tok_encode(context)) > room:
                self.cut.add(context)
        with self._bar(len(requests)):
            return super().generate_until(requests, disable_tqdm=True)

    @contextlib.contextmanager
    def _bar(self, requests: int) -> Iterator[None]:
        before = self.cache_hook
        with self.reporter.bar(self.label, requests, keep=False) as bar:
            self.set_cache_hook(_Ticks(bar))
            try:
                yield
            finally:
                self.set_cache_hook(before)


class _Ticks:
    """lm-eval tells its cache of every answered request; this one only counts them."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def add_partial(self, kind: str, request: object, answer: object) -> None:
        self.bar.advance()


class FittingTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """A subject of one of our benchmarks, whose prompts take as many shots as fit.

    used: prompt -> number of shots in it.
    """

    def __init__(self, name: str, benchmark: Benchmark, subject: Subject, lm: StreamLM) -> None:
        self.benchmark, self.lm = benchmark, lm
        self.tokens = min(benchmark.tokens, lm.max_length // 2)
        self.used: dict[str, int] = {}
        super().__init__(config=task_config(name, benchmark, subject, self.tokens))

    def fewshot_context(self, doc: Any, num_fewshot: int, **options: Any) -> str:
        benchmark = self.benchmark
        # With a chat template the delimiter is the template's; without, a space.
        space = "" if options.get("apply_chat_template") else " "
        texts = [space + text for text in benchmark.choices(doc)] if benchmark.choices else []
        for shots in range(num_fewshot, -1, -1):
            prompt = str(super().fewshot_context(doc, num_fewshot=shots, **options))
            if self.lm.fits(prompt, texts, self.tokens):
                break
        self.used[prompt] = shots
        return prompt


def task_config(name: str, benchmark: Benchmark, subject: Subject, tokens: int) -> dict[str, Any]:
    """lm-eval's description of a subject; all its functions are ours."""
    choose = benchmark.choices

    def splits(**_: object) -> dict[str, Dataset]:
        # `questions` as shots too where there are none: lm-eval wants a split, and takes 0 of it.
        shots = subject.shots or subject.questions
        return {"shots": _table(shots), "questions": _table(subject.questions)}

    def results(doc: Any, said: Any) -> dict[str, float]:
        scores = benchmark.score(doc, [value for value, _ in said] if choose else said[0])
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


class Suite:
    """Benchmarks with their questions, ready to be put to a model again and again."""

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
            [metadata.version("lm_eval"), *map(_hub_content, self.tasks[chosen.name].values())]
        )

    def identities(self) -> Mapping[str, str]:
        """Benchmark -> digest of its questions, its shots, and how they are asked and scored."""
        return self._identities

    def settings(self, task: str) -> dict[str, Any]:
        """What must agree between two results for their questions to be paired."""
        shots = self.shots.get(task)
        if shots is None:
            shots = max(each.config.num_fewshot or 0 for each in self.tasks[task].values())
        options, lm = self.options, self.lm
        return {
            "shots": shots,
            "limit": options.limit,
            "chat": options.chat,
            "bos": lm.puts_bos,
            "context": lm.max_length,
            "benchmark": self._identities[task],
        }

    def questions(self, task: str) -> list[Question]:
        """What a model will be asked, without scores: to see beforehand whether results pair."""
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
        """Put a benchmark to the model as it stands; `model` is its name."""
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
    """The questions in order; of one that lm-eval filters in several ways, all scores."""
    scores: dict[int, dict[str, float]] = {}
    for sample in samples:
        way = "" if sample["filter"] == "none" else f",{sample['filter']}"
        mine = scores.setdefault(sample["doc_id"], {})
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float):
                mine[metric + way] = float(sample[metric])
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


def content_hash(doc: Any) -> str:
    """The hash that lm-eval's log gives a question."""
    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))[:HASH]


def _hub_content(task: Any) -> list[Any]:
    """All that the scores of one of lm-eval's own tasks depend on, apart from the model."""
    shots = task.fewshot_docs() if task.config.num_fewshot else []
    docs = [content_hash(doc) for rows in (task.eval_docs, shots) for doc in rows]
    # Functions without source text are printed with where they lie in memory.
    return [re.sub("0x[0-9a-f]+", "", str(task.config.to_dict())), docs]


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's own bars and advice out of ours."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
