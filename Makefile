# `make demo` and `make test` need nothing but Python 3.11 or newer: they call `install` themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo demo-real evidence evidence-real evidence-beyond test test-slow models-table lint docs dist wheel-test audit bench mutants clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/fedsdr demo --out runs/demo

# The same on SmolLM2-135M-Instruct, which the first run downloads.
demo-real: install
	$(BIN)/fedsdr demo --model SmolLM2-135M-Instruct --seeds 0 --out runs/demo-real

# The paper's claims on the lab, hours; `make evidence QUICK=1` for a first look.
evidence: install
	$(BIN)/python -m experiments $(if $(QUICK),--quick)

# The same on SmolLM2-135M-Instruct, hours; FEDSDR_DATA and FEDSDR_EVAL name the files of five domains
# and of the benchmarks. `ONLY=english` needs neither.
evidence-real: install
	$(BIN)/python -m experiments.real $(if $(ONLY),--only $(ONLY))

# The method fedsdr2 on the seeds that it was chosen by and on others; hours.
evidence-beyond: install
	$(BIN)/python -m experiments.beyond $(if $(ONLY),--only $(ONLY))

# The tests of a file run in one process, since they share models and finished runs.
test: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

# What takes minutes or processes of its own: Flower, kills, loss of power, a cell of the evidence.
# A worker that is done takes over what waits behind a test of minutes.
test-slow: install
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow --durations=30 --durations-min=10

# Tries every causal architecture of transformers and writes docs/models.md's table; minutes.
models-table: install
	PYTHONPATH=tests $(BIN)/python -W ignore -m support.architectures

lint: install
	$(BIN)/ruff check .ci src tests benchmarks experiments examples
	$(BIN)/ruff format --check .ci src tests benchmarks experiments examples
	$(BIN)/mypy

# The documentation as a site, build/site/index.html; a warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Source distribution and wheel, checked, in build/dist.
dist: install
	$(BIN)/python .ci/dist.py

# The wheel of `make dist`, installed into an environment of its own, runs every command of README.
# With FULL=1 pip also installs what the wheel needs there, which takes minutes.
wheel-test: install
	$(BIN)/python .ci/wheel_test.py $(if $(FULL),--full)

# Known vulnerabilities of what constraints.txt pins.
audit:
	$(PYTHON) .ci/audit.py

# Takes long; `make bench QUICK=--quick` runs every script in miniature and keeps nothing.
# One of the contenders is TRL's trainer, which nothing else needs.
bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	for name in training cohort rewriting rounds memory aggregation deployment scale; do \
		$(BIN)/python benchmarks/$$name.py $(QUICK) || exit 1; \
	done
	$(BIN)/python benchmarks/tables.py

# Mutation testing of a random sample; about an hour. What survives is in .ci/mutants.csv.
mutants: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mutants]'
	$(BIN)/python .ci/mutants.py

# What runs have made is the user's and stays.
clean:
	rm -rf .venv build mutants src/*.egg-info
