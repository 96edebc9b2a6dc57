"""A comparison over seeds with made-up results."""

from pathlib import Path
from typing import Any

import pytest

from support.report_folders import HOSTILE, METHODS, distillation, metrics, score, write


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Three trained methods, two seeds, claims of every verdict."""
    runs = {
        "fedavg": ["seed-0/baselines/fedavg", "seed-1/baselines/fedavg"],
        "fedsd": ["seed-0/baselines/fedsd", "seed-1/baselines/fedsd"],
        "fedsdr": ["seed-0", "seed-1"],
    }
    scores = {
        name: {"client_facts": score(50 + i), "general": score(100 - i), "length": score(9.0)}
        for i, name in enumerate(METHODS)
    }
    scores["fedsdr"]["personal_client_facts"] = score(80.0)
    claims = [
        {"claim": f"claim {verdict}", "verdict": verdict, "words": f"words {verdict} {HOSTILE}"}
        for verdict in ("holds", "fails", "open")
    ]
    summary: dict[str, Any] = {"kind": "compare", "name": HOSTILE, "own": "fedsdr", "seeds": [0, 1]}
    summary |= {"seconds": 75.2, "methods": scores, "runs": runs, "claims": claims}
    write(tmp_path / "summary.json", summary)
    for name, places in runs.items():
        for seed, place in enumerate(places):
            folder = tmp_path / place
            folder.mkdir(parents=True, exist_ok=True)
            shift = 1.0 + seed + len(name) / 10
            (folder / "metrics.jsonl").write_text(metrics(shift, name == "fedsdr"))
            if name != "fedavg":
                write(folder / "distillation.json", distillation(0.3))
    client = {"records": 500, "held_out": 55, "mean_prompt_words": 20.1, "mean_response_words": 4.2}
    part = [{"name": HOSTILE, "categories": {"qa": 300, HOSTILE: 200}} | client]
    write(tmp_path / "seed-0" / "partition.json", part)
    (tmp_path / "seed-0" / "recipe.toml").write_text(f"# {HOSTILE}\nseed = 0\n")
    write(tmp_path / "seed-0" / "environment.json", {"python": "3.11", "git": None, "os": HOSTILE})
    return tmp_path
