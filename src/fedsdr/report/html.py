"""From the files of a folder to its `report.html`."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedsdr.files import write_text
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
from fedsdr.report.load import Material, load

TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path) -> Path:
    """Write `folder/report.html`, one self-contained page, and return its path.

    The page depends on the files of the folder and nothing else: no clock, no network.
    Raises `UserError` where there is no summary.json, a file of the folder is unreadable, or it
    cannot be written into.
    """
    path = folder / "report.html"
    write_text(path, render(load(folder)))
    return path


def environment() -> Environment:
    """Where the pages' templates are, and how they are filled in."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # texts of the data may hold markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(material: Material) -> str:
    template = environment().get_template("report.html.jinja")
    styles = palette.styles(method.name for method in material.methods)
    return template.render(
        head=sections.head(material),
        claims=sections.claims(material),
        scores=sections.scores(material, styles),
        clients=clients.table(material, styles),
        benchmarks=benchmarks.table(material.benchmarks),
        plane=charts.plane(material, styles),
        curves=charts.curves(material, styles),
        losses=charts.losses(material, styles),
        conflict=charts.conflict(material, styles),
        aggregation=tables.aggregation(material, styles),
        judgements=judgements.views(material.judgings),
        rewrites=rewrites.groups(material),
        holdings=tables.holdings(material.partition),
        notices=material.notices,
        traffic=tables.traffic(material, styles),
        recipe=material.recipe,
        environment=material.environment,
        palette=palette,
    )
