# Everything runs in .venv, which `setup` makes; nothing else on the machine is touched.
.DEFAULT_GOAL := help
.PHONY: help setup demo space test test-all test-space compat fuzz lint format format-check typecheck docs bench \
	constraints constraints-space clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# gradio refuses the Pillow that all else is tested with: the page has one of its own, on top of .venv's other packages.
SPACE := $(VENV)/space
SPACE_STAMP := $(SPACE)/.installed
PACKAGES := 'import sysconfig; print(sysconfig.get_path("purelib"))'
# One process per core, each with one thread, is faster than one process with all of them.
WORKERS ?= auto
PYTEST_ARGS ?=
FUZZ_CASES ?= 10000
BENCH_ARGS ?=
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

$(SPACE_STAMP): $(STAMP) constraints-space.txt
	$(BIN)/python -m venv --without-pip $(SPACE)
	echo "import site; site.addsitedir('$$($(BIN)/python -c $(PACKAGES))')" \
		> $$($(SPACE)/bin/python -c $(PACKAGES))/packages-of-venv.pth
	$(BIN)/python -m pip --python $(SPACE)/bin/python install --quiet --disable-pip-version-check \
		-c constraints-space.txt -e '.[space-test]'
	@touch $@

space: $(SPACE_STAMP) ## Serve the page to try, on http://127.0.0.1:7860; SPACE_ARGS="--generator NAME" names other models
	env -u OMP_NUM_THREADS $(SPACE)/bin/python hub_cards/space/app.py $(SPACE_ARGS)

test: setup ## Run the tests that CI runs; PYTEST_ARGS="-k name" narrows them
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(PYTEST_ARGS)

test-all: setup ## Run the slow tests too
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

test-space: $(SPACE_STAMP) ## Test the page to try, in Chromium where there is one
	$(SPACE)/bin/python -m pytest tests/test_space_page.py $(PYTEST_ARGS)

compat: setup ## Test with the oldest and newest versions on every Python; COMPAT_ARGS=oldest-3.11 runs one
	$(BIN)/python .ci/compat.py $(COMPAT_ARGS)

fuzz: setup ## Run 10,000 cases of every fuzzer, for hours; FUZZ_CASES=100 runs fewer
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest tests/fuzz -n $(WORKERS) --timeout 14400 $(PYTEST_ARGS)

lint: setup ## Check the code's style
	$(BIN)/ruff check .

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --select I .

format-check: setup ## Check the code's format
	$(BIN)/ruff format --check .

typecheck: setup ## Check the package's types
	$(BIN)/mypy

docs: setup ## Build the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup ## Measure everything against the naive ways, LLaVA and the machine; BENCH_ARGS="training --quick" a part
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[low-bits]'
	env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks $(BENCH_ARGS)

constraints: setup ## Write the installed versions to constraints.txt
	echo '# The versions that are tested, direct and transitive; `make constraints` writes them anew.' > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable >> constraints.txt
	@touch $(STAMP)

constraints-space: $(SPACE_STAMP) ## Write what the page has installed beside .venv's to constraints-space.txt
	echo '# The versions that the page is tested with, on top of .venv; `make constraints-space` writes them anew.' \
		> constraints-space.txt
	$(BIN)/python -m pip --python $(SPACE)/bin/python freeze --local --exclude-editable >> constraints-space.txt
	@touch $(SPACE_STAMP)

clean: ## Remove what building and testing left behind; .venv, data and runs stay
	rm -rf build dist site .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
