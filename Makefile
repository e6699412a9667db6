# `make train` and `make test` start from a bare Debian or Ubuntu machine; `make help` lists the rest.
RUNYARD := .venv/bin/runyard
# Four processes on two cores: the tests on a real SLURM wait half of their time.
PYTEST := .venv/bin/python -m pytest -q --durations=10 --numprocesses=4 --dist=loadgroup

SEED ?= 1
MINUTES ?= 60

.PHONY: help setup data train test torture check docs rehearsal-tools browser lint types lock clean
.DEFAULT_GOAL := help

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## OS libraries (asks for root or sudo), the locked environment in .venv, the project itself
	@slurm/setup.sh

data: ## Set up, then fetch, verify and write CIFAR-10 for FFCV into data/
	@slurm/setup.sh data

train: data ## Set up, get the data, train on all GPUs or two CPU ranks, write the report; ARGS="epochs=5" sets more
	@$(RUNYARD) submit experiment=auto $(ARGS)

test: data rehearsal-tools browser lint types ## Set up, SLURM and a browser where it may, then lint, types and every test
	@$(PYTEST) $(ARGS)

torture: setup ## Attack every promise and write docs/guarantees.md; SEED=1 MINUTES=60 (0: until all is done)
	@.venv/bin/python -m tests.torture --page --seed $(SEED) --minutes $(MINUTES) $(ARGS)

check: setup lint types ## Set up, then lint, types and the fast tests that need no data set
	@$(PYTEST) -m "not slow and not data" $(ARGS)

docs: setup ## Write docs/cli.md from --help, then the docs site into build/site, where a warning is an error
	@.venv/bin/python -m tests.docs.cli_page
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build
	@echo "build/site/index.html is written; with search: python3 -m http.server -d build/site"

rehearsal-tools: ## SLURM's packages (root or sudo), for a temporary cluster on this machine
	@slurm/setup.sh rehearsal

browser: ## Chromium (root or sudo), for the tests of pages
	@slurm/setup.sh browser

lint: setup ## Ruff, its layout, and who may import whom
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/lint-imports --no-cache >build/imports.txt || { cat build/imports.txt; exit 1; }

types: setup ## Mypy
	@.venv/bin/mypy

lock: ## Write requirements.lock anew after a change of pyproject.toml; ARGS=--upgrade takes newer versions
	@slurm/setup.sh lock $(ARGS)

clean: ## Delete caches and tool files; data/, runs/ and .venv stay
	rm -rf build .mypy_cache .ruff_cache .pytest_cache *.egg-info src/*.egg-info
	find src cluster tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
