"""The clients' own models one by one, each evaluated on its client's data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fedsdr.core.notices import plural_form
from fedsdr.report import labels, text
from fedsdr.report.load import Material, MethodRuns
from fedsdr.report.palette import Style
from fedsdr.report.tables import TableCell

LOSS = "loss"
HIDDEN = ("base_style", "house_style")
REFERENCE, COMPARED = "local", ("client_facts", "general", LOSS)  # for comparison, only these


@dataclass(frozen=True)
class Column:
    """cell: of a client."""

    metric: labels.Metric
    cell: Callable[[str], TableCell]


@dataclass(frozen=True)
class ClientGroup:
    """One method's columns, under its name."""

    label: str
    style: Style
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class ClientScores:
    """A row a client: its name and a cell for each column of each group."""

    groups: tuple[ClientGroup, ...]
    rows: tuple[tuple[str, tuple[TableCell, ...]], ...]
    note: str


def client_table(material: Material, styles: Mapping[str, Style]) -> ClientScores | None:
    """The own method's clients next to those of local training; None where they are unknown."""
    methods = {method.name: method for method in material.methods}
    own, reference = methods.get(material.own), methods.get(REFERENCE)
    names = _names(own) if own else []
    if not own or not names:
        return None
    groups = [ClientGroup(labels.method_label(own.name).label, styles[own.name], _columns(own))]
    if reference and reference is not own and (columns := _compared(reference)):
        groups.append(ClientGroup(labels.method_label(REFERENCE).label, styles[REFERENCE], columns))
    columns = tuple(column for group in groups for column in group.columns)
    rows = tuple((name, tuple(column.cell(name) for column in columns)) for name in names)
    return ClientScores(tuple(groups), rows, _note(own, names))


def _names(method: MethodRuns) -> list[str]:
    """The clients in the order of the files."""
    return list(dict.fromkeys(name for run in method.runs for name in run.personal))


def _metrics(method: MethodRuns) -> list[str]:
    rows = (row for run in method.runs for row in run.personal.values())
    found = {name for row in rows for name in row if "/" not in name and name not in HIDDEN}
    return labels.ordered_names(found, labels.METRIC_LABELS)


def _columns(own: MethodRuns) -> tuple[Column, ...]:
    plain = [_column(own, name) for name in _metrics(own) if name != LOSS]
    return (*plain, *(_losses(own) if LOSS in _metrics(own) else ()))


def _compared(reference: MethodRuns) -> tuple[Column, ...]:
    return tuple(_column(reference, name) for name in _metrics(reference) if name in COMPARED)


def _column(method: MethodRuns, name: str) -> Column:
    return Column(labels.metric_label(name), partial(_seeds, method, name))


def _losses(own: MethodRuns) -> list[Column]:
    """The loss of a client's own model next to the global model's, where that is known."""
    column = _column(own, LOSS)
    if not any(f"{LOSS}/{client}" in own.scores for client in _names(own)):
        return [column]
    shared = replace(column.metric, label="Loss of the global model")
    mine = replace(column.metric, label="Loss of its own model")
    gain = replace(column.metric, label="Difference")
    return [
        Column(shared, partial(_global, own)),
        replace(column, metric=mine),
        Column(
            gain,
            lambda client: TableCell(text.format_signed(_difference(own, client), gain.digits)),
        ),
    ]


def _values(method: MethodRuns, name: str, client: str) -> list[float]:
    """One value a seed."""
    rows = [run.personal.get(client, {}) for run in method.runs]
    return [row[name] for row in rows if name in row]


def _seeds(method: MethodRuns, name: str, client: str) -> TableCell:
    """The mean over the seeds, and their lowest and highest where there are several."""
    values, digits = _values(method, name, client), labels.metric_label(name).digits
    if not values:
        return TableCell(text.EN_DASH)
    span = text.format_span(min(values), max(values), digits) if len(values) > 1 else ""
    return TableCell(text.format_fixed(sum(values) / len(values), digits), span)


def _global(own: MethodRuns, client: str) -> TableCell:
    score = own.scores.get(f"{LOSS}/{client}")
    return TableCell(
        text.format_fixed(score.mean if score else None, labels.metric_label(LOSS).digits)
    )


def _difference(own: MethodRuns, client: str) -> float | None:
    """Own minus global, as far as shown digits tell; None where they are not of the same seeds."""
    score, values = own.scores.get(f"{LOSS}/{client}"), _values(own, LOSS, client)
    if not score or not values or score.n != len(values):
        return None
    return round(sum(values) / len(values) - score.mean, labels.metric_label(LOSS).digits)


def _note(own: MethodRuns, names: Sequence[str]) -> str:
    seeds = sum(bool(run.personal) for run in own.runs)
    gains = [gain for name in names if (gain := _difference(own, name)) is not None]
    words = ["Each client's own model, judged on that client's own data."]
    if gains:
        helped = sum(gain < 0 for gain in gains)
        words.append(
            f"For {helped} of {plural_form(len(gains), 'client')} its loss is lower than the"
            " global model's: a negative difference."
        )
    if seeds > 1:
        words.append(f"Means over {seeds} seeds; below them the lowest and the highest seed.")
    return " ".join(words)
