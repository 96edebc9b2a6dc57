"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): 57 subjects, four options, 5 shots."""

from pathlib import Path
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.evaluate.benchmarks.folder import find_file, leading_shots, read_csv
from fedsdr.evaluate.benchmarks.subject import (
    Benchmark,
    Subject,
    choice_accuracy,
    lettered_question,
)

OPTIONS: Final = ("choice0", "choice1", "choice2", "choice3")
MMLU_LAYOUT: Final = (
    "mmlu/dev/SUBJECT_dev.csv and mmlu/test/SUBJECT_test.csv, each with the header "
    "question,choice0,choice1,choice2,choice3,answer (answer: 0 to 3)"
)


def read_mmlu(data: Path, shots: int) -> list[Subject]:
    """All subjects, each with the first `shots` rows of its dev file."""
    tests = sorted(find_file(data, ["mmlu/test"], MMLU_LAYOUT).glob("*_test.csv"))
    if not tests:
        raise UserError(f"{data / 'mmlu/test'} holds no *_test.csv: expected {MMLU_LAYOUT}")
    return [_subject(data, path.name.removesuffix("_test.csv"), path, shots) for path in tests]


def _subject(data: Path, name: str, test: Path, shots: int) -> Subject:
    dev = find_file(data, [f"mmlu/dev/{name}_dev.csv"], MMLU_LAYOUT)
    # Two spaces, as in the original's format_subject.
    about = f"The following are multiple choice questions (with answers) about  {_words(name)}."
    return Subject(name, leading_shots(dev, _rows(dev), shots), _rows(test), about + "\n\n")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _rows(path: Path) -> list[dict[str, str]]:
    rows = read_csv(path, ("question", *OPTIONS, "answer"))
    for number, row in enumerate(rows, start=1):
        if row["answer"] not in ("0", "1", "2", "3"):
            raise UserError(f"{path}, row {number}: answer = {row['answer']!r}, expected 0 to 3")
    return rows


MMLU: Final = Benchmark(
    line="four options; the letter of the highest likelihood counts",
    source="Hendrycks et al. 2021; prompts as in declare-lab/instruct-eval",
    shots=5,
    layout=MMLU_LAYOUT,
    metrics=("acc",),
    read=read_mmlu,
    prompt=lambda row: lettered_question(row["question"], [row[key] for key in OPTIONS]),
    target=lambda row: int(row["answer"]),
    score=lambda row, said: {"acc": choice_accuracy(said.nats, int(row["answer"]))},
    choices=lambda row: ["A", "B", "C", "D"],
)
