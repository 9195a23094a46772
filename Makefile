# `make help` lists the targets. PYTHON is the interpreter that .venv is made from (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE # compiling rgate again is a third of every start

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1 \t/p' Makefile | expand -t 20

demo: .venv/.run ## the gateway on port 8080 before its demo backends; DOCKER=1: these as containers
ifeq ($(DOCKER),1)
	@.ci/engine answers || { echo "No Docker engine answers. Start yours, or as root: .ci/engine start"; exit 2; }
	@BASE_IMAGE=$$(.ci/engine base-image) $(BIN)/rgate demo --docker
else
	@$(BIN)/rgate demo
endif

test: lint ## lint, then every test; those in tests/docker where a Docker engine answers; PYTEST_ARGS adds options
	$(BIN)/pytest -n auto --cov --cov-fail-under=90 $(PYTEST_ARGS)

lint: .venv/.dev ## types and style
	$(BIN)/mypy --strict rgate examples/*/*.py
	$(BIN)/mypy --strict -c "$$(cat rgate.py)"  # as a file it would be the module rgate, in the place of the package
	$(BIN)/ruff check
	$(BIN)/ruff format --check

bench: .venv/.bench ## gateways side by side, an hour; BENCH_ARGS=--targets: what rgate promises; BENCH_ARGS=--help: more
	$(BIN)/python -m bench $(BENCH_ARGS)

clean: ## remove .venv and the files of the tools
	rm -rf .venv .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/.run: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rgate needs Python 3.11 or newer (make PYTHON=…)")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/.bench: .venv/.run
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@
