"""What judge.json says, in words and rows: for the page and for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.core.errors import UserError
from fedsdr.core.files import read_json
from fedsdr.core.layout import JUDGE_FILE
from fedsdr.core.notices import plural_form
from fedsdr.report import text


@dataclass(frozen=True)
class JudgementRow:
    label: str
    n: str
    value: str
    span: str


@dataclass(frozen=True)
class View:
    """One judging. facts: sentences; warnings: those that a reader must not miss."""

    title: str
    measure: str
    rows: tuple[JudgementRow, ...]
    facts: tuple[str, ...]
    warnings: tuple[str, ...]


def load_judgings(folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The judgings of a run folder; none where nothing has been judged."""
    path = folder / JUDGE_FILE
    if not path.exists():
        return ()
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("judgings"), list):
        raise UserError(f"{path} is not what fedsdr judge writes: delete it and judge again")
    return tuple(content["judgings"])


def judging_views(judgings: Sequence[Mapping[str, Any]]) -> list[View]:
    """A view of each judging."""
    return [judging_view(judging) for judging in judgings]


def judging_view(judging: Mapping[str, Any]) -> View:
    """One judging of judge.json as rows, sentences and warnings."""
    pair = judging["kind"] == "pairwise"
    scale = 100 if pair else 1
    whole = judging["win_rate" if pair else "score"]
    parts = {"all": whole, **judging["categories"]}
    title = f"{judging['a']} against {judging['b']}" if pair else f"{judging['a']}, rated 1 to 10"
    return View(
        title=title,
        measure=f"win rate of {judging['a']}, %" if pair else "score",
        rows=tuple(_row(name, part, scale) for name, part in parts.items()),
        facts=(*(_pair_facts(judging) if pair else ()), _who(judging), *_lengths(judging)),
        warnings=tuple(_warnings(judging)),
    )


def _row(label: str, part: Mapping[str, Any] | None, scale: float) -> JudgementRow:
    if part is None:
        return JudgementRow(label, "0", text.EN_DASH, "")
    digits = 1 if scale > 1 else 2
    value = text.format_fixed(scale * part["mean"], digits)
    return JudgementRow(label, str(part["n"]), value, _span(part, scale, digits))


def _span(part: Mapping[str, Any], scale: float, digits: int) -> str:
    low, high = (None if part[k] is None else scale * part[k] for k in ("low", "high"))
    return text.format_span(low, high, digits)


def _pair_facts(judging: Mapping[str, Any]) -> list[str]:
    o, place, agreement = judging["outcomes"], judging["position"], judging["agreement"]
    facts = [
        f"{judging['a']} wins {o['a']}, {judging['b']} wins {o['b']}, ties {o['tie']} (of them "
        f"{o['inconsistent']} with another verdict in the other order, {o['identical']} identical "
        "answers)."
    ]
    if agreement["share"] is not None:
        facts.append(f"The two orders agree in {text.format_share(agreement['share'])} of pairs.")
    if place["rate"] is not None:
        span = _span(place, 100, 1)
        p = f", sign test p = {place['p']:.2g}" if place["p"] is not None else ""
        facts.append(
            f"The answer shown first wins {text.format_share(place['rate'])} of the decided "
            f"verdicts{f' ({span})' if span else ''}{p}."
        )
    return facts


def _who(judging: Mapping[str, Any]) -> str:
    judge, questions = judging["judge"], judging["questions"]
    cost = "" if judging["cost"] is None else f", cost {judging['cost']:.4g}"
    tokens = sum(judging["tokens"].values())
    return (
        f"Judge {judge['model']} at {judge['host']}, prompts {judge['prompts']}; "
        f"{plural_form(questions['count'], 'question')} of {questions['file']}; "
        f"{plural_form(tokens, 'token')}{cost}."
    )


def _lengths(judging: Mapping[str, Any]) -> list[str]:
    answers = judging["answers"]
    words = [
        f"{judging[k]} {text.format_fixed(each['words'])} words" for k, each in answers.items()
    ]
    return [f"Mean length of an answer: {text.join_words(words)}."]


def _warnings(judging: Mapping[str, Any]) -> list[str]:
    words = []
    place = judging.get("position")
    if place and place["biased"]:
        first = place["rate"] >= 0.5
        share = place["rate"] if first else 1 - place["rate"]
        words.append(
            f"Position bias: this judge prefers the answer shown {'first' if first else 'second'} "
            f"({text.format_share(share)} of the decided verdicts, p = {place['p']:.2g}). Both "
            "orders were asked, so it makes ties and not winners, but the win rate is drawn to "
            "50 %."
        )
    if malformed := judging["verdicts"]["malformed"]:
        words.append(f"{plural_form(malformed, 'verdict')} could not be read and are not counted.")
    for name, each in judging["answers"].items():
        if each["too_long"]:
            count = plural_form(int(each["too_long"]), "answer")
            words.append(
                f"{judging[name]}: {count} could not be given, since the conversation "
                "fills the model's context; judged as empty."
            )
        if each["cut"]:
            count = plural_form(int(each["cut"]), "answer")
            words.append(f"{judging[name]}: {count} cut at {judging['answer_tokens']} tokens.")
    return words
