"""The labelled rewrites, and the table of docs/distillation.md that is computed from them."""

from experiments.gate import JUDGED, Score, check_scores, gate_score, labelled_rewrites, score_table
from support.repository import REPOSITORY


def test_the_table_is_the_documents():
    page = (REPOSITORY / "docs" / "distillation.md").read_text(encoding="utf-8")
    assert score_table(labelled_rewrites()) in page


def test_the_labelled_set():
    rows = labelled_rewrites()
    assert len(rows) >= 400
    assert len({row["prompt"] for row in rows}) == 114
    assert {label for row in rows for label in row["labels"]} == JUDGED.keys()


def test_scores_are_counted_by_hand():
    def row(rewrite: str, *labels: str, finished: bool = True) -> dict[str, object]:
        asked = {"prompt": "What is a bond?", "response": "A loan.", "gold": "loan"}
        return {**asked, "rewrite": rewrite, "finished": finished, "labels": [*labels]}

    rows = [
        row("A loan."),
        row("Debt of a firm", "wrong"),
        row("I'm sorry.", "no_answer", "wrong"),
        row("A loan, I'm afraid.", "no_answer"),
        row("I'm sorry.", "no_answer", finished=False),
    ]
    scores = check_scores(rows)
    assert scores["no_answer"] == Score(refused=3, labelled=3, both=3)
    assert scores["wrong"] == Score(refused=3, labelled=2, both=2)
    assert scores["echo"] == Score(0, 0, 0)
    assert gate_score(rows) == Score(refused=3, labelled=3, both=3)
