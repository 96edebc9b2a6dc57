"""Public benchmarks on a model in memory, asked and scored by lm-evaluation-harness."""
