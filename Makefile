# On a fresh machine, `make demo` and `make test` need nothing but this checkout and Python. `make help` lists the rest.

PYTHON ?= python3.11
BIN := .venv/bin
# The files of tests are divided among three processes, since many wait for other programs.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: help demo demo-fleet test test-fast coverage test-cuda gpu test-deploy image-test check train-demo clean
.DEFAULT_GOAL := test

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/installed ## Serve models/demo, send one request, write demo.png
	$(BIN)/python -m server.demo

demo-fleet: .venv/installed ## Serve models/demo with a queue, a front and two workers; kill one of them
	$(BIN)/python -m server.demo.fleet

test: check ## Run the checks and all tests except test-cuda and test-deploy (default)
	tests/install-tools.sh
	$(PYTEST)

test-fast: check ## Run the checks and the tests that start no other program
	$(PYTEST) -m "not slow"

coverage: .venv/installed ## Measure the coverage of the tests; ARGS='-m "not slow"' for the fast ones
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --skip-empty
	@for package in engine server; do \
	    echo "$$package $$($(BIN)/coverage report --include="$$package/*" --format=total) %"; \
	done

test-cuda: .venv/installed ## Test the engine and the server on a GPU; needs a CUDA build of torch
	$(BIN)/python -m pytest tests/cuda

gpu: $(if $(ENV),,.venv/installed) ## Test and measure on a GPU for ten minutes; ARGS="--done gpu.json" continues
	$(or $(ENV),$(BIN)/python) -m benchmarks.gpu $(ARGS)

test-deploy: .venv/installed ## Test the chart, alerts, dashboard and examples of deploy/; installs their tools
	tests/deploy/install-tools.sh
	$(BIN)/mypy --strict -p tests.deploy
	$(BIN)/python -m pytest tests/deploy

image-test: export VARIANT ?= cpu
image-test: .venv/installed ## Build deploy/Dockerfile without a registry and test it; needs root. VARIANT=cpu|cuda
	tests/deploy/install-tools.sh
	tests/deploy/build-image.sh
	$(BIN)/python -m pytest -s tests/deploy/image.py

check: .venv/installed ## Run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train-demo: .venv/installed ## Train models/demo from scratch; see models/demo/README.md
	$(BIN)/python -m models.training

# The versions of requirements.lock, so that every machine runs what was tested.
.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[test]"
	touch $@

clean: ## Delete .venv and demo.png
	rm -rf .venv demo.png
