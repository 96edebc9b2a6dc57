"""Finished cells of the evidence with made-up numbers."""

import json
from pathlib import Path
from typing import Any

from experiments.measure import EVIDENCE_FILE
from fedsdr.lab.world import CLIENT_ATTRIBUTES, client_name


def fake(folder: Path, number: float) -> None:
    """A finished cell with made-up numbers."""
    folder.mkdir(parents=True)
    facts = ("client_facts", "changed_facts", "general", "hallucination", "length")
    scores = {name: number + i for i, name in enumerate(facts)}
    own = {f"personal_{name}": value for name, value in scores.items()}
    write(folder / "result.json", scores | own)
    write(folder / "personal.json", {client_name(k): scores for k in range(10)})
    rows: list[Any] = [{"round": r, "eval": {k: v * r for k, v in scores.items()}} for r in (0, 2)]
    rows[1]["train"] = {"conflict/cosine": 0.1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    client = {"records": 4, "checked": 4, "wrong": 0.25, "raw_words": 5.0, "rewrite_words": 14.0}
    write(folder / "distillation.json", {"clients": {"anna": client}})
    for name in CLIENT_ATTRIBUTES:  # as the lab calls its clients
        texts = [f"well , it is {name} {i} of {round(number)} ." for i in range(9)]
        (folder / "clients" / name).mkdir(parents=True)
        rows = [{"text": text} for text in texts]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "clients" / name / "rewrites.jsonl").write_text(lines)
    answers = [[True, 5], [number > 50, 5], [False, 5]]
    extra = {"gradients_first": 0.1, "gradients_last": number / 100, "transfer_gap": 0.3}
    write(folder / EVIDENCE_FILE, {"answers": answers, "response_loss": 2.0, **extra})


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
