"""Small files in the layout of every benchmark."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from support import tiny_recipe

ANSWERS = "ABCD"
COMMONSENSE_CHOICES = {"arc_easy": 4, "arc_challenge": 4, "piqa": 2, "openbookqa": 4}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny_recipe.write_rows(path, rows)


def write_mmlu(folder: Path, subject: str, part: str, count: int) -> None:
    words = tiny_recipe.WORDS
    lines = ["question,choice0,choice1,choice2,choice3,answer"]
    for i in range(count):
        picked = [words[(3 * i + j * (i + 2)) % len(words)] for j in range(5)]
        lines.append(f"{' '.join(picked[:2])} {part},{','.join(picked[1:])},{i % 4}")
    path = folder / "mmlu" / part / f"{subject}_{part}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_benchmarks(folder: Path) -> Path:
    """Files of every benchmark below a folder, which is returned."""
    for subject in ("red_birds", "cats"):
        write_mmlu(folder, subject, "dev", 5)
        write_mmlu(folder, subject, "test", 4)
    for name in ("sees", "likes"):
        rows = [{"input": f"{name} the cat {i}", "target": f"({ANSWERS[i % 4]})"} for i in range(7)]
        path = folder / "bbh" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"canary": "", "examples": rows}), encoding="utf-8")
    rows = [
        {"context": f"Passage: cat {i}.\nQuestion: which {i}?\nAnswer:", "completion": "",
         "ref_text": f"cat {i}|{i} dogs"}
        for i in range(6)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "drop_v0_dev.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    write(
        folder / "crass" / "test.jsonl",
        [
            {"premise": f"A cat {i}.", "question": "What if?", "options": ["red", "blue", "green"],
             "answer": ["green", "red", "blue"][i % 3]}
            for i in range(6)
        ],
    )  # fmt: skip
    for part, count in (("train", 5), ("test", 3)):
        write(
            folder / "gsm8k" / f"{part}.jsonl",
            [
                {"question": f"{part} {i}?", "answer": f"It is {i}.\n#### {1000 + i:,}"}
                for i in range(count)
            ],
        )
    (folder / "TruthfulQA.csv").write_text(
        "Type,Question,Best Answer,Correct Answers,Incorrect Answers\n"
        "x,Is red a cat?,No,No; It is not a cat.,Yes; It is\n"
        "x,Is a bird near?,Yes,Yes,No; not near\n",
        encoding="utf-8",
    )
    write_commonsense(folder)
    return folder


def write_commonsense(folder: Path, count: int = 12) -> None:
    """ARC, PIQA and OpenBookQA: choices of different lengths in words and in characters."""
    for shift, (name, choices) in enumerate(COMMONSENSE_CHOICES.items()):
        picked = random.Random(shift)
        rows = [
            {
                "question": " ".join(picked.choices(tiny_recipe.WORDS, k=picked.randint(2, 6))),
                "choices": [
                    " ".join(picked.choices(tiny_recipe.WORDS, k=1 + (i + j) % 4))
                    for j in range(choices - (i % 5 == 4 and choices > 2))
                ],
                "answer": i % (choices - 1),
            }
            for i in range(count)
        ]
        write(folder / "commonsense" / f"{name}.jsonl", rows)
