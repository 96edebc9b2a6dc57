"""Labels of metrics, methods and reasons, from labels.toml, with a fallback for new names."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Final, Literal

PERSONAL_LABELS: Final = "personal_"


@dataclass(frozen=True)
class Metric:
    """better: the direction in which a method improves; "" where neither is better in itself."""

    label: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    words: str = ""
    digits: int = 1


@dataclass(frozen=True)
class MethodLabel:
    """short: for the ends of lines in figures."""

    label: str
    short: str
    words: str = ""


_TABLES = tomllib.loads((resources.files("fedsdr.report") / "labels.toml").read_text("utf-8"))
BENCHMARK_LABELS: Final[dict[str, str]] = _TABLES["benchmarks"]
METRIC_LABELS: Final[dict[str, Metric]] = {
    **{name: Metric(**row) for name, row in _TABLES["metrics"].items()},
    **{
        name: Metric(label, "%", "higher", f"Score on {label}, a public benchmark.")
        for name, label in BENCHMARK_LABELS.items()
    },
}
METHOD_LABELS: Final = {name: MethodLabel(**row) for name, row in _TABLES["methods"].items()}
PARTS: Final[dict[str, str]] = _TABLES["parts"]
LOSSES: Final[dict[str, str]] = _TABLES["losses"]
REASONS: Final[dict[str, str]] = _TABLES["reasons"]
MEASURES: Final[dict[str, str]] = _TABLES["measures"]
VERDICTS: Final[dict[str, str]] = _TABLES["verdicts"]


def metric_label(name: str) -> Metric:
    """The metric's label; `personal_NAME` and `NAME/CLIENT` derive theirs from NAME's."""
    base, slash, client = name.partition("/")
    plain = base.removeprefix(PERSONAL_LABELS)
    found = METRIC_LABELS.get(plain) or Metric(readable_name(plain), digits=3)
    if plain != base:
        found = replace(found, words=f"{found.words} Each client's own model, own data.".strip())
    whose = client if plain == base else f"{client}, own model"
    return replace(found, label=f"{found.label}: {whose}") if slash else found


def is_personal(name: str) -> bool:
    """Whether a metric is of the clients' own models."""
    return name.startswith(PERSONAL_LABELS)


def method_label(name: str) -> MethodLabel:
    """A name of its own, or put together from parts."""
    parts = [PARTS.get(part, part) for part in name.split("+")]
    label = " + ".join(parts) if len(parts) > 1 or name in PARTS else readable_name(name)
    return METHOD_LABELS.get(name) or MethodLabel(label, label)


def ordered_names(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Known names in the table's order, then the others by name. A client's own model counts as
    its metric; clients of a metric follow it by name."""
    rank = {name: index for index, name in enumerate(known)}

    def place(name: str) -> tuple[int, str]:
        plain = name if name in rank else name.partition("/")[0].removeprefix(PERSONAL_LABELS)
        return rank.get(plain, len(rank)), name

    return sorted(names, key=place)


def loss_label(name: str) -> str:
    """The label of a training loss."""
    return LOSSES.get(name) or readable_name(name)


def reason_label(name: str) -> str:
    """The label of a reason to refuse a rewrite."""
    return REASONS.get(name) or readable_name(name).lower()


def measure_label(name: str) -> str:
    """The label of what a check has measured."""
    return MEASURES.get(name) or readable_name(name).lower()


def readable_name(name: str) -> str:
    """A name as words: "norm/R" is "Norm: R"."""
    text = name.replace("_", " ").replace("/", ": ").strip()
    return text[:1].upper() + text[1:]
