"""The report: one self-contained HTML page, a pure function of a run's or comparison's files."""
