"""The run folder: what each of its files and folders is called, and what is in it.

DIR/recipe.toml  environment.json  partition.json  notices.json  summary.json  report.html
DIR/skipped.jsonl   where rows of the data were left out
DIR/metrics.jsonl  distillation.json  rehearsed.jsonl  checkpoint.safetensors  personal.json
DIR/result.json
DIR/delivered.json  after the last adapter
DIR/global/  clients/<id>/  tensorboard/<method>/
DIR/clients/<id>/private/   S, which goes with the global R or the client's own
DIR/clients/<id>/personal/  the client's own R, in methods that have one
DIR/benchmarks/   results of `fedsdr eval` (fedsdr.workflows.benchmark)
DIR/judge.json  judge/   results of `fedsdr judge` (fedsdr.judge.judging)
DIR/baselines/<name>/   recipe.toml, and lines 3 to 8 again, for each baseline
DIR/.lock         which process works in it, for as long as one does
"""

from typing import Final

# Of a run.
RECIPE_FILE: Final = "recipe.toml"  # of a method, too
ENVIRONMENT_FILE: Final = "environment.json"
PARTITION_FILE: Final = "partition.json"
NOTICES_FILE: Final = "notices.json"  # what the run left out: fedsdr.core.notices
SKIPPED_FILE: Final = "skipped.jsonl"  # the rows that data.invalid leaves out, its owner's alone
SUMMARY_FILE: Final = "summary.json"  # the last file that a run writes
REPORT_FILE: Final = "report.html"  # written again after evaluations, and at the end
LOCK_FILE: Final = ".lock"
BASELINES_FOLDER: Final = "baselines"

# Of a method.
METRICS_FILE: Final = "metrics.jsonl"  # a line a round
CHECKPOINT_FILE: Final = "checkpoint.safetensors"  # the server's state after the last round
NOISE_FILE: Final = "noise.json"  # the secret of differential privacy's noise, its owner's alone
DELIVERED_FILE: Final = "delivered.json"  # every adapter is written; evaluations may fail yet
RESULT_FILE: Final = "result.json"  # a finished method's final metrics
PERSONAL_FILE: Final = "personal.json"  # each client's own model, judged on its own data
GLOBAL_ADAPTER: Final = "global"  # folder of the deployed R

# Of a method's distillation; the pages are of `fedsdr distill --report`.
DISTILLATION_FILE: Final = "distillation.json"
FIGURES_FILE: Final = "distillation_figures.json"
DISTILLATION_PAGE: Final = "distillation.html"

REHEARSED_FILE: Final = "rehearsed.jsonl"  # a method's prompts and answers of the base model

# Of a client of a method.
CLIENTS_FOLDER: Final = "clients"
SMOOTHING_ADAPTER: Final = "private"  # folder of S
PERSONAL_ADAPTER: Final = "personal"  # folder of the client's own R
REWRITES_FILE: Final = "rewrites.jsonl"

# Of what is measured afterwards.
BENCHMARKS_FOLDER: Final = "benchmarks"
BENCHMARK_SUMMARY: Final = "summary.json"
AGAINST_FILE: Final = "against.json"  # differences to the results of another run
JUDGE_FILE: Final = "judge.json"
JUDGE_FOLDER: Final = "judge"
TENSORBOARD_FOLDER: Final = "tensorboard"
