"""Commands called in this process, and what their errors must look like."""

from pathlib import Path

from typer.testing import CliRunner

from fedsdr.cli.main import app


def invoke(*args: str | Path) -> tuple[int, str]:
    """Exit status and standard error; whatever else went wrong is raised."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def assert_told(code: int, said: str, parts: list[str]) -> None:
    """Status 2 and, after lines of progress, one line with all parts."""
    *_, line = said.rstrip("\n").split("\n")
    assert code == 2, said
    assert line.startswith("error: ")
    assert all(part in line for part in parts), line
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    assert len(line) < 900


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
