# Two commands on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-cuda test-deploy image-test check train-demo clean
.DEFAULT_GOAL := test

# Sets up, serves models/demo, sends one real request, leaves demo.png.
demo: .venv/installed
	$(BIN)/python -m server.demo

# Sets up and runs every test.
test: check
	tests/install-tools.sh
	$(BIN)/python -m pytest

# The engine and the server on a GPU, with a CUDA build of torch.
test-cuda: .venv/installed
	$(BIN)/python -m pytest tests/cuda

# The chart, alerts, dashboard and examples of deploy/ with the real tools, which it installs.
test-deploy: .venv/installed
	tests/deploy/install-tools.sh
	$(BIN)/mypy --strict -p tests.deploy -m benchmarks.fleet -m benchmarks.sizing
	$(BIN)/python -m pytest tests/deploy

# Builds deploy/Dockerfile without a registry, runs it, and asks it for an image. Needs root. VARIANT=cuda: that one.
image-test: export VARIANT ?= cpu
image-test: .venv/installed
	tests/deploy/install-tools.sh
	tests/deploy/build-image.sh
	$(BIN)/python -m pytest -s tests/deploy/image.py

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
