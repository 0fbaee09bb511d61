# Everything runs in .venv, which `setup` makes; nothing else on the machine is touched.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format format-check typecheck bench constraints clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One process per core, each with one thread, is faster than one process with all of them.
WORKERS ?= auto
PYTEST_ARGS ?=
export OMP_NUM_THREADS ?= 1

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv with the package and all that development needs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=...")'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## Reconstruct pictures and draw new ones from prompts; IMAGES="a.jpg b.png" adds your own
	env -u OMP_NUM_THREADS $(BIN)/python demo/demo.py $(IMAGES)

test: setup ## Run the tests that CI runs; PYTEST_ARGS="-k name" narrows them
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(PYTEST_ARGS)

test-all: setup ## Run the slow tests too
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: setup ## Check the code's style
	$(BIN)/ruff check .

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --select I .

format-check: setup ## Check the code's format
	$(BIN)/ruff format --check .

typecheck: setup ## Check the package's types
	$(BIN)/mypy

bench: setup ## Measure tokenizer and generator against the naive ways and the machine's peak
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks.tokenizer
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks.text_to_image

constraints: setup ## Write the installed versions to constraints.txt
	echo '# The versions that are tested, direct and transitive; `make constraints` writes them anew.' > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable >> constraints.txt
	@touch $(STAMP)

clean: ## Remove what building and testing left behind; .venv, data and runs stay
	rm -rf build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
