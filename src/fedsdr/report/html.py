"""From the files of a folder to its `report.html`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedsdr.core.files import write_text
from fedsdr.core.layout import REPORT_FILE
from fedsdr.report import (
    benchmarks,
    charts,
    clients,
    judgements,
    palette,
    rewrites,
    sections,
    tables,
)
from fedsdr.report.load import Material, load_material, load_run

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    folder: Path, summary: Mapping[str, Any] | None = None, texts: bool = True
) -> Path:
    """Write `folder/report.html`, one self-contained page, and return its path.

    summary: what summary.json is going to hold, where that is not written yet. texts: whether to
    show examples of clients' records. The page depends on these and the files of the folder, and
    nothing else: no clock, no network. Of a run that is not finished it says what is still to come.
    Raises `UserError` where there is neither summary nor recipe, a file of the folder is
    unreadable, or it cannot be written into.
    """
    path = folder / REPORT_FILE
    material = load_run(folder) if summary is None else load_material(folder, summary)
    write_text(path, render_report(material, texts))
    return path


def template_environment() -> Environment:
    """Where the pages' templates are, and how they are filled in."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # texts of the data may hold markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_report(material: Material, texts: bool = True) -> str:
    """The page of a run or comparison as HTML. texts: as in `write_report`."""
    template = template_environment().get_template("report.html.jinja")
    styles = palette.method_styles(method.name for method in material.methods)
    groups = rewrites.rewrite_groups(material)
    return template.render(
        head=sections.head_section(material),
        claims=sections.claims_section(material),
        scores=sections.scores_section(material, styles),
        clients=clients.client_table(material, styles),
        benchmarks=benchmarks.benchmark_table(material.benchmarks),
        plane=charts.facts_plane(material, styles),
        curves=charts.metric_charts(material, styles),
        losses=charts.loss_charts(material, styles),
        conflict=charts.conflict_chart(material, styles),
        aggregation=tables.aggregation_table(material, styles),
        judgements=judgements.judging_views(material.judgings),
        rewrites=groups if texts else [replace(group, pairs=()) for group in groups],
        partition=tables.partition_table(material.partition),
        notices=material.notices,
        traffic=tables.traffic_table(material, styles),
        recipe=material.recipe,
        environment=material.environment,
        palette=palette,
    )
