# make          this list
# make demo     sets up and does the main job: learn, score, draw; writes runs/demo/index.html
# make test     sets up and passes the tests (all but those marked slow)
# Needs Python 3.11 to 3.13 and make; everything else goes into .venv.

# The first Python in range; another one: make setup PYTHON=/path/to/python3.12
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$python; break; }; done)
# Test processes, each with one torch thread; 0 runs the tests in pytest's own process (for pdb).
WORKERS ?= 2
# The share of the slow tests that test-slow runs: i/n is the i-th of n disjoint parts.
SLOW_SHARE ?= 1/1
# More for pytest, say: make test ARGS="-k vae -x"
ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup test test-slow lint format typing demo bench wheel clean

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile
	@echo "more:         setup, test-slow, lint, format, bench, wheel, clean"

setup: $(READY)

# The tested versions come from constraints.txt; the editable install sees new files by itself.
$(READY): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python could not make .venv: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	@echo "Installing ppl_dgm and what it needs into .venv: a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[test,lint]"
	@touch $(READY)

test: $(READY)
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(READY)
	$(PYTEST) -m slow --slow-share=$(SLOW_SHARE) --durations=10 $(ARGS)

lint: $(READY) typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --allow-untyped-defs --allow-incomplete-defs $(wildcard examples/*.py benchmarks/*.py)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tree as it installs, made of links: type checkers and editors do not run import hooks, so they resolve
# ppl_dgm.models and ppl_dgm.inference here (mypy_path and extraPaths in pyproject.toml).
typing:
	@rm -rf build/typing && mkdir -p build/typing/ppl_dgm
	@cd build/typing/ppl_dgm && ln -s ../../../ppl_dgm/* . && ln -s ../../../models ../../../inference .

demo: $(READY)
	$(BIN)/python examples/demo.py --out runs/demo

bench: $(READY)
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# Old build products would travel in the wheel, so they go first.
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
