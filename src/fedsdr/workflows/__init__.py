"""The use cases: prepare, run, distill, diagnose, benchmark, open a finished run."""
