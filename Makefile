# `make run` and `make test` need Python >= 3.11 and nothing else; both may be repeated.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: run test lint bench flow serve clean help
.DELETE_ON_ERROR:

run: $(READY)  ## train, evaluate and register: dvc repro, then what was made
	@$(BIN)/python -m pipeline.heal --quiet
	@$(BIN)/dvc repro
	@$(BIN)/python -m pipeline.report.summary

# Files in the order of their names: in xdist's own order, those of few but long tests come last, all on one worker.
test: $(READY)  ## all tests but the slow ones
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder && echo "Tested. Next: make run, or make help for the rest"

lint: $(READY)  ## ruff, import-linter and pyright
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache --no-logo && $(BIN)/pyright

bench: $(READY)  ## every benchmark, side by side: hours; benchmarks/results.json
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python -m benchmarks

flow: $(READY)  ## the same pipeline as a Prefect flow
	@$(BIN)/python -m pipeline.flows

clean:  ## forget the environment and everything the pipeline made
	rm -rf .venv data/prepared data/measurements models reports mlruns mlflow.db* .dvc/cache .dvc/tmp .prefect

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11 or later: set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: about 2 GB, a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
