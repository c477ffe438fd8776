# Two commands on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check train-demo clean
.DEFAULT_GOAL := test

# Sets up, serves models/demo, sends one real request, leaves demo.png.
demo: .venv/installed
	$(BIN)/python -m server.demo

# Sets up and runs every test.
test: check
	tests/install-tools.sh
	$(BIN)/python -m pytest

# Lint, format and types.
check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Trains models/demo again from nothing; see models/demo/README.md.
train-demo: .venv/installed
	$(BIN)/python -m models.training

# The versions of requirements.lock: every machine runs what was tested.
.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[test]"
	touch $@

clean:
	rm -rf .venv demo.png
