"""Which method pays for these data, in words: of the means that the report shows, and of what
became of the rewrites."""

from collections.abc import Sequence
from typing import Final

from fedsdr.core.statistics import non_dominated
from fedsdr.report import labels, text
from fedsdr.report.charts import FACTS, KEPT
from fedsdr.report.clients import LOSS
from fedsdr.report.load import Material, MethodRuns
from fedsdr.report.rewrites import RewriteCounts, count_rewrites
from fedsdr.report.tables import best_methods

SIDES: Final = {"": "Global models", "personal_": "Clients' own models"}
NO_CHOICE: Final = {"base", "central"}  # nothing is learnt, or nothing is private
ENOUGH: Final = 3  # seeds
CHANCE: Final = (
    "Fewer than three seeds cannot tell a lead from chance: repeat this with fedsdr compare "
    "--seeds 0,1,2."
)
OFTEN_WRONG: Final = 0.1  # of accepted rewrites; half of what plain rewriting in the lab has
OFTEN_REFUSED: Final = 0.5  # of records


def advise_methods(material: Material) -> list[str]:
    """Sentences for the reader who has to choose; none where fewer than two methods were trained
    or nothing can be compared."""
    trained = [method for method in material.methods if not NO_CHOICE & {*method.name.split("+")}]
    if len(trained) < 2:
        return []
    compared = [words for side in SIDES if (words := _compared(material, trained, side))]
    if compared and len(material.seeds) < ENOUGH:
        compared.append(CHANCE)
    return [*compared, *_rewriting(trained)]


def _compared(material: Material, methods: Sequence[MethodRuns], side: str) -> str:
    """The front of facts and knowledge, or else the lowest loss; "" where neither is known."""
    names = (side + FACTS, side + KEPT)
    points = {
        method.name: tuple(_shown(method, name) for name in names)
        for method in methods
        if all(name in method.scores for name in names)
    }
    if len(points) > 1:
        marked = zip(points.items(), non_dominated([*points.values()]), strict=True)
        front = [f"{_label(m)} ({_numbers(point, names)})" for (m, point), on in marked if on]
        sentence = (
            f"{SIDES[side]}: the front of facts learnt and knowledge kept is "
            f"{text.join_words(front)}"
        )
        if len(front) == len(points):
            return f"{sentence}: none of them is ahead in one without being behind in the other."
        return (
            f"{sentence}; any other is behind one of these in at least one, and ahead of it in "
            "neither."
        )
    best = best_methods(material, side + LOSS)
    if leading := [_label(m.name) for m in methods if m.name in best]:
        return (
            f"{SIDES[side]}: the lowest loss on held-out records is that of "
            f"{text.join_words(leading)}. These records are in the clients' own words, which "
            "favours methods that learn them raw, and say nothing of what was forgotten: fedsdr "
            "eval and fedsdr judge do."
        )
    return ""


def _rewriting(methods: Sequence[MethodRuns]) -> list[str]:
    """What the rewrites say of methods that learn them, each kind of rewriting once."""
    counts = dict[RewriteCounts, list[str]]()
    for method in methods:
        found = count_rewrites(method)
        if found.records:
            counts.setdefault(found, []).append(method.name)
    return [sentence for found, names in counts.items() for sentence in _judged(found, names)]


def _judged(found: RewriteCounts, methods: Sequence[str]) -> list[str]:
    sentences, names = [], text.join_words([_label(name) for name in methods])
    if found.records - found.rewritten > OFTEN_REFUSED * found.records:
        sentences.append(
            f"{names}: most responses kept their raw form, so that rewriting had little effect. "
            "fedsdr distill --prompts compares prompts for this model and these data."
        )
    if found.wrong is not None and found.wrong > OFTEN_WRONG:
        contrastive = any("fedsdr2" in name.split("+") for name in methods)
        fewer = 'distill.contrast = 1, of method = "fedsdr2", leaves fewer without any answers; '
        sentences.append(
            f"{names}: {text.format_share(found.wrong)} of the rewrites with a known answer are "
            f"wrong, and are learnt. {'' if contrastive else fewer}distill.verify refuses those "
            "whose answer is known to be another."
        )
    return sentences


def _shown(method: MethodRuns, name: str) -> float:
    """As far as shown digits tell."""
    return round(method.scores[name].mean, labels.metric_label(name).digits)


def _numbers(point: Sequence[float], names: Sequence[str]) -> str:
    return ", ".join(
        text.format_fixed(value, labels.metric_label(name).digits)
        for value, name in zip(point, names, strict=True)
    )


def _label(name: str) -> str:
    return labels.method_label(name).short
