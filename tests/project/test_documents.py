"""What README.md and docs/ name exists: commands and their options, keys, make targets, files."""

import re
import shlex
import tomllib

import click
import pytest
import typer

import docs_hooks
import wheel_test
from fedsdr.cli.main import app
from fedsdr.recipe.load import parse_recipe
from support.repository import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *(REPOSITORY / name for name in ("CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
TEXTS = {str(page.relative_to(REPOSITORY)): page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:\.venv/bin/)?fedsdr [^`]+)`")


def blocks(text: str, language: str) -> list[str]:
    return [content for name, content in BLOCK.findall(text) if name == language]


def commands(text: str) -> list[list[str]]:
    """Words after "fedsdr" of all commands in blocks, without what the shell takes."""
    found = []
    for block in blocks(text, ""):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.partition(" #")[0].split("|"):
                words = shlex.split(part.partition(" > ")[0])
                while words and re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
                    words.pop(0)
                if words and words[0] in ("fedsdr", ".venv/bin/fedsdr"):
                    found.append(words[1:])
    return found


def parse(words: list[str]) -> None:
    """As the command line does, without running anything; raises click's errors."""
    command: click.Command = typer.main.get_command(app)
    context = None
    while isinstance(command, click.Group):
        with command.make_context(command.name, list(words), parent=context) as context:
            _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    command.make_context(command.name, list(words), parent=context)


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_in_a_block_is_understood(page):
    for words in commands(TEXTS[page]):
        parse(words)


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_in_a_sentence_is_one_that_there_is(page):
    """It may leave out what it needs, and stand for its like by dots."""
    for text in SPAN.findall(TEXTS[page]):
        words = [word for word in shlex.split(text)[1:] if word not in ("...", "RECIPE", "DIR")]
        try:
            parse(words)
        except click.MissingParameter:
            continue


def test_commands_are_found_and_mistakes_in_them_too():
    assert len([words for text in TEXTS.values() for words in commands(text)]) > 40
    for mistake in (["rum", "my.toml"], ["check"], ["check", "my.toml", "--colour"]):
        with pytest.raises(click.UsageError):
            parse(mistake)


def test_the_test_of_the_wheel_runs_every_command_of_readme():
    wheel_test.check_readme(wheel_test.BEFORE + wheel_test.AFTER + wheel_test.LONG)
    with pytest.raises(wheel_test.FailedError, match=r"check my\.toml"):
        wheel_test.check_readme(wheel_test.AFTER)


@pytest.mark.parametrize("page", TEXTS)
def test_every_table_of_a_recipe_is_read(page):
    for block in blocks(TEXTS[page], "toml"):
        tables = tomllib.loads(block)
        parse_recipe({"model": {"path": "folder" if "data" in tables else "lab"}, **tables})


@pytest.mark.parametrize("page", TEXTS)
def test_every_target_of_make_is_in_the_makefile(page):
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([a-z-]+)", TEXTS[page], re.MULTILINE)
    assert set(named) - set(targets) == set()


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_that_is_linked_or_named_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXTS[page])
    named = re.findall(
        r"\b((?:tests|benchmarks|recipes|docs)/[\w/.-]+\.(?:py|toml|md))\b", TEXTS[page]
    )
    here = (REPOSITORY / page).parent
    generated = {REPOSITORY / "docs" / path for path in docs_hooks.generated_pages()}
    missing = [
        link for link in links
        if not (here / link).exists() and (here / link).resolve() not in generated
    ]  # fmt: skip
    missing += [name for name in named if not (REPOSITORY / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_function_that_is_named_by_its_file_is_there(page):
    """As `file.py: name, other.method` in CONTRIBUTING.md."""
    for file, names in re.findall(r"`(?:src/fedsdr/)?([\w/]+\.py): ([\w., ]+)`", TEXTS[page]):
        code = (REPOSITORY / "src" / "fedsdr" / file).read_text(encoding="utf-8")
        for name in re.split(r"[., ]+", names):
            assert re.search(rf"((def|class) |^){name}\b", code, re.MULTILINE), f"{file}: {name}"


def test_the_guide_to_deployments_gives_the_commands_that_its_test_runs():
    """Those of tests/deploy/test_flower.py."""
    for words in (
        "fedsdr deploy init", "./start.sh", "fedsdr deploy register", "fedsdr deploy run",
        "fedsdr status", "fedsdr deploy simulate",
    ):  # fmt: skip
        assert words in TEXTS["docs/deploy.md"]
