"""What of a site's folder is made from templates: its scripts, and Flower's app."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from fedsdr.core import files
from fedsdr.deploy.sites.folder import SERVER_FILE


def write_app(folder: Path, port: int) -> None:
    """The app that is submitted, and where to."""
    files.write_text(folder / "app" / "pyproject.toml", fill_template("app.toml", {}))
    files.write_json(folder / SERVER_FILE, {"port": port})


def write_script(path: Path, template: str, values: Mapping[str, Any]) -> None:
    files.write_text(path, fill_template(template, values))
    path.chmod(0o755)


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedsdr.deploy"), undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True, trim_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(values)


def program_folder() -> str:
    """The folder of this environment's commands."""
    return str(Path(sys.executable).parent)
