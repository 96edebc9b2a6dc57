"""From verdicts to win rates, scores and position bias. Questions, not verdicts, are resampled:
the verdicts on one question are not independent of each other."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from scipy import stats

from fedsdr.core.statistics import Estimate, bootstrap_interval, sign_test
from fedsdr.judge.verdicts import VerdictChoice

Winner = Literal["a", "b", "tie"]
SIGNIFICANT: Final = 0.05
POINTS: Final[dict[Winner, float]] = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True)
class JudgedComparison:
    """Two conversations compared at one turn. ab: the verdict with A shown first; None where it
    could not be read. identical: both answers are the same, and no verdict was requested."""

    question: str
    category: str
    ab: VerdictChoice | None = None
    ba: VerdictChoice | None = None
    identical: bool = False

    @property
    def winners(self) -> tuple[Winner, Winner] | None:
        """Who won in either order; None where a verdict is missing."""
        if self.identical:
            return "tie", "tie"
        if self.ab is None or self.ba is None:
            return None
        ab: dict[VerdictChoice, Winner] = {"first": "a", "second": "b", "tie": "tie"}
        ba: dict[VerdictChoice, Winner] = {"first": "b", "second": "a", "tie": "tie"}
        return ab[self.ab], ba[self.ba]

    @property
    def winner(self) -> Winner | None:
        """Who won in both orders; where these disagree it is a tie, as in MT-bench."""
        if self.winners is None:
            return None
        first, second = self.winners
        return first if first == second else "tie"


def pairwise_result(comparisons: Sequence[JudgedComparison]) -> dict[str, Any]:
    """The result of a pairwise judging, as in judge.json."""
    usable = [c for c in comparisons if c.winner is not None]
    asked = [c for c in usable if not c.identical]
    agree = sum(c.winners is not None and c.winners[0] == c.winners[1] for c in asked)
    single = [v for c in comparisons for v in (c.ab, c.ba) if not c.identical]
    winners = Counter(c.winner for c in usable)
    points = [(c.question, c.category, POINTS[c.winner]) for c in usable if c.winner is not None]
    return {
        "verdicts": {
            name: sum(v == kind for v in single)
            for name, kind in (
                ("first", "first"), ("second", "second"), ("tie", "tie"), ("malformed", None)
            )
        },
        "outcomes": {
            "a": winners["a"],
            "b": winners["b"],
            "tie": winners["tie"],
            "identical": len(usable) - len(asked),
            "inconsistent": len(asked) - agree,
            "unusable": len(comparisons) - len(usable),
        },
        "win_rate": share_by_question(points),
        "categories": by_category(points, share_by_question),
        "agreement": {"n": len(asked), "share": agree / len(asked) if asked else None},
        "position": position_bias(comparisons),
    }  # fmt: skip


def score_result(rows: Sequence[tuple[str, str, int | None]]) -> dict[str, Any]:
    """The same for ratings, given as (question, category, score or None)."""
    points = [(question, category, float(s)) for question, category, s in rows if s is not None]
    counts = Counter(s for _, _, s in rows if s is not None)
    return {
        "verdicts": {
            "scores": {str(score): counts[score] for score in range(1, 11)},
            "malformed": sum(s is None for _, _, s in rows),
        },
        "score": mean_by_question(points),
        "categories": by_category(points, mean_by_question),
    }


JudgePoints = Sequence[tuple[str, str, float]]  # (question, category, points)


def by_category(
    points: JudgePoints, summarise: Callable[[JudgePoints], Estimate | None]
) -> dict[str, Estimate]:
    """`summarise` of the points of each named category."""
    found = {}
    for name in sorted({category for _, category, _ in points if category}):
        result = summarise([p for p in points if p[1] == name])
        assert result is not None
        found[name] = result
    return found


def mean_by_question(points: JudgePoints) -> Estimate | None:
    """The mean over questions of the means over their turns, with a 95 % bootstrap interval."""
    turns = defaultdict(list)
    for question, _, value in points:
        turns[question].append(value)
    means = np.array([np.mean(values) for values in turns.values()])
    if not len(means):
        return None
    low, high = bootstrap_interval((means,), lambda x, axis: np.mean(x, axis=axis))
    return {"n": len(means), "mean": float(np.mean(means)), "low": low, "high": high}


def share_by_question(points: JudgePoints) -> Estimate | None:
    """The same for points between 0 and 1. Where one side has won every question, resampling gives
    an interval of width 0, and the exact binomial interval is used."""
    result = mean_by_question(points)
    if result is not None and result["mean"] in (0, 1):
        wins = result["n"] if result["mean"] else 0
        exact = stats.binomtest(wins, result["n"]).proportion_ci()
        result["low"], result["high"] = float(exact.low), float(exact.high)
    return result


def position_bias(comparisons: Sequence[JudgedComparison]) -> dict[str, Any]:
    """Position bias: does the position in which an answer is shown decide?

    rate: how often the first shown wins where there is a winner; 0.5 where place says nothing,
    since every pair is shown in both orders. p: an exact sign test over questions. A question
    counts for the first place where, over its verdicts in both orders, the first shown won more
    often than the second; without bias both happen equally often, however good the answers are.
    """
    first: Counter[str] = Counter()
    second: Counter[str] = Counter()
    for c in comparisons:
        if not c.identical and c.ab is not None and c.ba is not None:
            first[c.question] += (c.ab == "first") + (c.ba == "first")
            second[c.question] += (c.ab == "second") + (c.ba == "second")
    names = [name for name in first if first[name] + second[name]]
    won = np.array([first[name] for name in names], dtype=float)
    lost = np.array([second[name] for name in names], dtype=float)
    up, down = int(np.sum(won > lost)), int(np.sum(won < lost))
    p = sign_test(up, down)
    decided = int(won.sum() + lost.sum())
    low, high = bootstrap_interval((won, lost), _first_rate)
    return {
        "first": int(won.sum()),
        "decided": decided,
        "rate": float(won.sum() / decided) if decided else None,
        "low": low,
        "high": high,
        "questions_for_first": up,
        "questions_for_second": down,
        "p": p,
        "biased": p is not None and p < SIGNIFICANT,
    }


def _first_rate(won: Any, lost: Any, axis: int) -> Any:
    return np.sum(won, axis=axis) / (np.sum(won, axis=axis) + np.sum(lost, axis=axis))
