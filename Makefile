# `make demo` and `make test` need nothing but Python 3.11 or newer: they call `install` themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint audit bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/fedsdr demo --out runs/demo

test: install
	$(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# Known vulnerabilities of what constraints.txt pins. The tool has a folder of its own, and needs
# pypi.org; with --strict what could not be looked up is a failure, and not a silent pass.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

# Takes long; `make bench QUICK=--quick` runs every script in miniature and keeps nothing.
# One of the contenders is TRL's trainer, which nothing else needs.
bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	for name in training cohort rewriting rounds memory aggregation deployment scale; do \
		$(BIN)/python benchmarks/$$name.py $(QUICK) || exit 1; \
	done
	$(BIN)/python benchmarks/tables.py

# What runs have made is the user's and stays.
clean:
	rm -rf .venv build src/*.egg-info
