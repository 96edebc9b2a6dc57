"""The report: one self-contained HTML page, a pure function of a run's or comparison's files."""

from fedsdr.report.html import write_report

__all__ = ["write_report"]
