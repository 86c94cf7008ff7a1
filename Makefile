# Every target makes what it needs: the environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run at once.
JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-all lint format chromium

help: ## say what the targets do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.ready ## make .venv with Tony and what the demo needs in it

demo: setup ## train, measure, describe and serve a small omni-modal model (7 to 11 minutes on two cores)
	$(BIN)/tony run recipes/demo.toml
	$(BIN)/tony serve runs/demo --detach

# The TPU compiler stays apart from the environment, in which JAX would look for TPUs.
TPU := $(VENV)/tpu
test test-all: export PYTHONPATH := $(TPU)

test: $(TPU)/.ready chromium ## the tests (7 minutes on two cores; JOBS=8 for more)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: test ## the slow tests too
	@$(BIN)/pip install -q -e '.[cluster]'
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.ready-dev ## formatter, linter, type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev ## put the formatting right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chromium: # the page is tested in a real browser; without root those tests are skipped
	@if [ ! -x /usr/bin/chromium ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Chromium for the tests of the web page"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || \
		echo "Chromium could not be installed; the tests of the page will be skipped"; \
	fi

$(TPU)/.ready: | $(VENV)/.ready-dev
	@echo "getting the TPU compiler (once)"
	@mkdir -p $(TPU)
	@$(BIN)/pip install -q --target $(TPU) --no-deps 'libtpu>=0.0.20,<0.2' || \
		echo "libtpu could not be had; tests that compile for TPUs will be skipped"
	@touch $@

$(VENV)/bin/python:
	@echo "making the environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	@echo "installing Tony and what it needs (once)"
	$(BIN)/pip install -q -e '.[evals,voice]'
	@$(BIN)/pip install -q -e '.[pesq]' 2>/dev/null || echo "pesq needs a C compiler and could not be built: its measure is left out"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "installing what the tests need (once)"
	$(BIN)/pip install -q -e '.[evals,voice,dev]'
	@touch $@
