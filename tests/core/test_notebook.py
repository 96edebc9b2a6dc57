"""Progress in a notebook: lines are printed, bars are one display that is updated."""

from typing import Any

import pytest

from fedsdr.core import notebook
from fedsdr.core.notebook import NotebookReporter, default_reporter


class Display:
    """Stands in for IPython's display: what was shown first, and each update of it."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.updates: list[str] = []

    def __call__(self, content: dict[str, str], raw: bool, display_id: bool) -> "Display":
        assert raw
        assert display_id
        self.shown.append(content["text/plain"])
        return self

    def update(self, content: dict[str, str], raw: bool) -> None:
        assert raw
        self.updates.append(content["text/plain"])


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    it = Display()
    monkeypatch.setattr("IPython.display.display", it)
    return it


def test_bars_are_one_display_that_ends_as_they_do(display, capsys, monkeypatch):
    monkeypatch.setattr(notebook, "REDRAW", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a kernel does
    reporter = NotebookReporter()
    with reporter.live(), reporter.bar("rounds", 2) as bar:
        bar.advance(note="first")
        with reporter.bar("clients", 3, keep=False) as inner:
            inner.advance()
        bar.advance(note="last")
        reporter.say("a line")
    assert len(display.shown) == 1
    assert any("clients" in text and "1/3" in text for text in display.updates)
    assert "2/2" in display.updates[-1]
    assert "last" in display.updates[-1]
    assert "clients" not in display.updates[-1]
    assert "\x1b" not in "".join(display.updates)
    assert capsys.readouterr().out == "a line\n"


def test_a_fast_bar_is_not_redrawn_for_each_step(display):
    reporter = NotebookReporter()
    with reporter.live(), reporter.bar("steps", 1000) as bar:
        for _ in range(1000):
            bar.advance()
    assert len(display.shown) + len(display.updates) < 100
    assert "1000/1000" in [*display.shown, *display.updates][-1]


def test_no_bar_is_no_display(display):
    with NotebookReporter().live():
        pass
    assert display.shown == []


def test_only_a_notebook_has_its_own_reporter(monkeypatch):
    assert not isinstance(default_reporter(), NotebookReporter)

    class JupyterConsole:
        is_jupyter = True

    kernel: Any = lambda *_, **__: JupyterConsole()  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(notebook, "Console", kernel)
        assert isinstance(default_reporter(), NotebookReporter)
