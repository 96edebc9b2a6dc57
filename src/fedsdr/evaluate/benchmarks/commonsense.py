"""School science and common sense by likelihood, without shots: ARC (Clark et al. 2018, arXiv
1803.05457), PIQA (Bisk et al. 2020, arXiv 1911.11641), OpenBookQA (Mihaylov et al. 2018, arXiv
1809.02789). Small models are above chance in them.

Each answer is written out after the question, and the letters of the options play no part.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from fedsdr.core.errors import UserError
from fedsdr.evaluate.benchmarks.folder import check_texts, find_file, read_lines
from fedsdr.evaluate.benchmarks.subject import (
    Benchmark,
    BenchmarkRow,
    ChoiceLikelihoods,
    Scores,
    Subject,
    choice_accuracy,
)

COMMONSENSE_FIELDS: Final = ("question", "choices", "answer")


def commonsense_layout(name: str) -> str:
    """What the file of one of these benchmarks holds."""
    return (
        f"commonsense/{name}.jsonl (or {name}.jsonl) with the fields question, choices (a list of "
        "texts) and answer (the number of the right one, from 0)"
    )


def read_commonsense(name: str, data: Path, shots: int) -> list[Subject]:
    """The questions of one of these benchmarks, in the order of its file."""
    assert shots == 0
    names = [f"commonsense/{name}.jsonl", f"{name}.jsonl"]
    path = find_file(data, names, commonsense_layout(name))
    rows = read_lines(path, COMMONSENSE_FIELDS)
    for number, row in enumerate(rows, start=1):
        check_texts(path, number, row, ("question",))
        if not row["question"].strip():
            raise UserError(f"{path}, row {number}: the question is empty")
        _check_choices(f"{path}, row {number}", row["choices"], row["answer"])
    return [Subject(name, [], [{key: row[key] for key in COMMONSENSE_FIELDS} for row in rows])]


def _check_choices(place: str, choices: Any, answer: Any) -> None:
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{place}: choices = {choices!r:.80}: expected a list of 2 texts or more")
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise UserError(f"{place}: choices holds {choice!r:.80}: expected texts, none empty")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(
            f"{place}: answer = {answer!r:.80}: expected the number of the right choice, 0 to "
            f"{len(choices) - 1}"
        )


def score_commonsense(row: BenchmarkRow, said: ChoiceLikelihoods) -> Scores:
    """acc_norm: the right choice has the highest log-likelihood per character, as lm-eval counts
    it. acc: in all. acc_token: per token."""
    characters = [len(choice) for choice in row["choices"]]
    per_character, per_token = (
        [nats / length for nats, length in zip(said.nats, lengths, strict=True)]
        for lengths in (characters, said.tokens)
    )
    values = {"acc_norm": per_character, "acc": said.nats, "acc_token": per_token}
    return {metric: choice_accuracy(each, row["answer"]) for metric, each in values.items()}


def _question_and_answer(row: BenchmarkRow) -> str:
    return f"Question: {row['question']}\nAnswer:"


def _benchmark(
    name: str, line: str, paper: str, prompt: Callable[[BenchmarkRow], str]
) -> Benchmark:
    return Benchmark(
        line=f"{line}; the answer of the highest likelihood counts",
        source=f"{paper}; prompts and scores as in lm-eval",
        shots=0,
        layout=commonsense_layout(name),
        metrics=("acc_norm", "acc", "acc_token"),
        read=partial(read_commonsense, name),
        prompt=prompt,
        target=lambda row: int(row["answer"]),
        score=score_commonsense,
        choices=lambda row: list(row["choices"]),
    )


COMMONSENSE: Final[Mapping[str, Benchmark]] = {
    name: _benchmark(name, line, paper, prompt)
    for name, line, paper, prompt in (
        ("arc_easy", "school science", "Clark et al. 2018", _question_and_answer),
        ("arc_challenge", "harder school science", "Clark et al. 2018", _question_and_answer),
        ("piqa", "which of two ways reaches a goal", "Bisk et al. 2020", _question_and_answer),
        # A sentence to be continued, more often than not.
        ("openbookqa", "elementary science", "Mihaylov et al. 2018", lambda row: row["question"]),
    )
}
