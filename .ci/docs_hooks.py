"""What mkdocs does beyond its configuration: generated pages, and links to files outside docs/.

`mkdocs.yml` names this file under `hooks`. A module of the package that is written as
`room/file.py` or `room/file.py: name` in a page becomes a link to the API reference.
"""

import re
import sys
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
import reference_pages as reference  # noqa: E402

MODULES: Final = "Modules"  # the entry of the navigation that is filled with a page for each room
ROOT_PAGES: Final = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
}
FIGURE: Final = re.compile(r"!\[[^\]]*\]\((figures/[\w-]+\.svg)\)")
LINKED: Final = ("examples", "recipes")  # folders whose files are part of the site
CODE: Final = re.compile(r"`(?:src/fedsdr/)?((?:\w+/)*\w+)\.py(?:: ([\w., ]+))?`")


def generated_pages() -> dict[str, str]:
    """Path in the site -> Markdown, of all pages that are not files of docs/."""
    pages = {"recipe.md": reference.recipe_page(), "commands.md": reference.commands_page()}
    pages |= {f"api/{room}.md": reference.room_page(room) for room in reference.rooms()}
    for source, path in ROOT_PAGES.items():
        pages[path] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    fill_modules(config.nav or [])
    return config


def fill_modules(items: list[dict[str, object]]) -> None:
    """Put a page for each room but `api`, which has an entry, into the navigation's `MODULES`."""
    for item in items:
        for title, value in item.items():
            if title == MODULES:
                rooms = [room for room in reference.rooms() if room != "api"]
                item[title] = [{room: f"api/{room}.md"} for room in rooms]
            elif isinstance(value, list):
                fill_modules(value)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    for path in sorted(path for folder in LINKED for path in (ROOT / folder).glob("*.*")):
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith("api/"):
        return markdown
    for source, path in ROOT_PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({path}")
    for folder in LINKED:
        markdown = markdown.replace(f"](../{folder}/", f"]({folder}/")
    return link_code(FIGURE.sub(inline_figure, markdown))


def inline_figure(match: re.Match[str]) -> str:
    """A figure as part of the page, which then follows the page's light or dark colours."""
    drawing = (ROOT / "docs" / match.group(1)).read_text(encoding="utf-8")
    return f'<div class="figure">{drawing.strip()}</div>'


def link_code(markdown: str) -> str:
    """The page with names of modules, and of what is public in them, as links to the reference."""

    def linked(match: re.Match[str]) -> str:
        path, names = match.groups()
        file = reference.PACKAGE / f"{path}.py"
        if not file.is_file() or "/" not in path:
            return match.group()
        module = "fedsdr." + path.replace("/", ".")
        if names is None:
            return f"[`{path}.py`][{module}]"
        code = file.read_text(encoding="utf-8")
        links = [_link(module, name, code) for name in re.split(r",\s*", names)]
        return f"[`{path}.py`][{module}]: " + ", ".join(links)

    return CODE.sub(linked, markdown)


def _link(module: str, name: str, code: str) -> str:
    first = name.partition(".")[0]
    public = re.search(rf"^(?:def |class )?{first}\b", code, re.MULTILINE) and first[0] != "_"
    return f"[`{name}`][{module}.{name}]" if public else f"`{name}`"
