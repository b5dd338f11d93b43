# The targets that a user and CI need. `make venv` finds (or installs) Python 3.10, which Lava needs;
# name another with PYTHON=. Everything goes into .venv (or .venv-base) and nowhere else.

SHELL := /bin/bash
PYTHON ?=
VENV ?= .venv
EXTRAS ?= lava,snntorch,norse,plot,dev
PIP_FLAGS ?=
PYTEST_FLAGS ?=
# test files run side by side, each in one process
JOBS ?= 2
BASE_EXTRA ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
BASE := .venv-base
# another Python makes the environment anew
BASE_STAMP := $(BASE)/.stamp$(subst /,_,$(PYTHON))

.PHONY: help venv demo test test-base smoke lint types clean

help:
	@echo "make venv       Python 3.10 environment in $(VENV) with Lava, snnTorch, Norse and tools"
	@echo "make demo       the demonstration, in that environment"
	@echo "make test       all tests and docstring examples"
	@echo "make test-base  the tests without Lava, snnTorch and Norse, e.g. PYTHON=python3.11"
	@echo "make smoke      Lava itself on Python 3.11 to 3.13, where they exist"
	@echo "make lint       ruff;   make types   mypy;   make clean   remove what was built"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@set -eu; \
	python="$(PYTHON)"; \
	if [ -z "$$python" ]; then python="$$(bash .ci/find-python 3.10)"; fi; \
	echo "environment in $(VENV) from $$python"; \
	"$$python" -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q -U --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt pip
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/03_run_on_lava.py

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --doctest-modules --doctest-ignore-import-errors $(PYTEST_FLAGS) tests grasp_plugin

# Only what the package itself requires, and pytest: on any Python from 3.10 on. Tests that need
# Lava, snnTorch or Norse skip by name. BASE_EXTRA adds requirements, e.g. torch==2.13.0.
test-base: $(BASE_STAMP)
	$(BASE)/bin/python -m pytest $(PYTEST_FLAGS) tests

$(BASE_STAMP): pyproject.toml constraints.txt
	@set -eu; \
	python="$(PYTHON)"; \
	if [ -z "$$python" ]; then python=python3; fi; \
	echo "environment in $(BASE) from $$python"; \
	"$$python" -m venv --clear $(BASE)
	$(BASE)/bin/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e . pytest hypothesis $(BASE_EXTRA)
	@touch $@

# Lava on newer Pythons, as far as they exist here: pip keeps Lava's pin, so it is installed by hand.
smoke:
	@for version in 3.11 3.12 3.13; do \
	  python="$$(bash .ci/find-python $$version existing 2>/dev/null)" || continue; \
	  venv=.venv-lava$$version; \
	  if [ ! -f $$venv/.stamp ]; then \
	    "$$python" -m venv --clear $$venv && \
	    $$venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --ignore-requires-python lava-nc==0.10.0 && \
	    $$venv/bin/python -m pip install -q --disable-pip-version-check numpy scipy networkx asteval greenlet nir h5py numba safetensors array-api-compat tqdm tabulate pytest hypothesis && \
	    touch $$venv/.stamp || exit 1; \
	  fi; \
	  echo "Lava on Python $$version"; \
	  PYTHONPATH=. $$venv/bin/python -m pytest -q tests/parity/test_stock_lava.py || exit 1; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(BASE) .venv-lava3.* build dist *.egg-info demo_out .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
