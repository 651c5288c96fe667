# `make reproduce` and `make test` start from nothing but Python 3.11 or newer, git and make.

SHELL := bash
PYTHON ?= $(firstword $(foreach name,python3 python python3.13 python3.12 python3.11,\
            $(if $(shell $(name) -c '$(NEW_ENOUGH)' 2>/dev/null && echo yes),$(name))) python3)
SCALE ?= quick
OUT ?= figures

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := .venv/$(SCRIPTS)
OLDEST := .venv-oldest/$(SCRIPTS)
PY := $(BIN)/python
STAMP := .venv/.installed
TABLES = $(if $(ARGS),,--tables data/results)  # of all tests, or none
ON_ALL_CORES := --numprocesses logical --maxprocesses 8 --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Where it is set every process compiles all of evitlab again, and the tests start a hundred.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup reproduce test test-slow test-oldest faults hostile lint notebooks figures lab lock
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## create .venv with the packages of requirements.lock
	@echo ".venv is ready: $$($(PY) --version)"

reproduce: $(STAMP)  ## the main job: run the notebooks, draw the figures, compare with the paper
	@$(PY) -m evitlab reproduce --scale $(SCALE) --out $(OUT) $(ARGS)

test: $(STAMP)  ## run the tests on all cores; needs no network (make test ARGS="-k report")
	@$(PY) -m pytest $(ON_ALL_CORES) $(ARGS)

test-slow: $(STAMP)  ## run the tests that `make test` leaves out, as they take long
	@$(PY) -m pytest $(ON_ALL_CORES) --slow -m slow $(ARGS)

# Their deprecation warnings are theirs, so a warning is no error here.
test-oldest: $(STAMP)  ## run them all with the oldest packages that pyproject.toml allows
	@[ -x $(OLDEST)/python ] || { echo "Installing the oldest packages into .venv-oldest ..."; \
	  $(PY) -m venv .venv-oldest; }
	@$(OLDEST)/python -m pip install --quiet --no-deps -r requirements-oldest.lock
	@$(OLDEST)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(OLDEST)/python -m pytest $(ON_ALL_CORES) --slow -o filterwarnings=default $(ARGS)

faults: $(STAMP)  ## kill, starve and fill up running commands at length; prints the table
	@$(PY) -m pytest --thorough $(TABLES) tests/test_faults_*.py $(ARGS)

hostile: $(STAMP)  ## feed the readers what they must refuse, at length; prints the table
	@$(PY) -m pytest --thorough $(TABLES) \
	  tests/test_hostile_*.py tests/test_laws_*.py tests/test_fuzz_*.py $(ARGS)

lint: $(STAMP)  ## ruff over code and notebooks, then mypy
	@$(PY) -m ruff check .
	@$(PY) -m mypy

notebooks: $(STAMP)  ## run the notebooks at quick scale and save them executed, in place
	@$(PY) -m evitlab reproduce --scale quick --out figures --save-notebooks

figures: $(STAMP)  ## redraw figures/ at quick scale, the notebooks left as they are
	@$(PY) -m evitlab reproduce --scale quick --out figures

# Where Voila is installed JupyterLab loads it too, and it would give files away without the token.
lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab --VoilaConfiguration.file_denylist='.*' notebooks/00_tour.ipynb

COMPILE = $(PY) -m uv pip compile --quiet --universal --all-extras --python-version 3.11 \
	  --no-annotate --custom-compile-command "make lock" pyproject.toml

lock: $(STAMP)  ## pin the packages again (make lock UPGRADE=1: to their newest versions)
	@$(COMPILE) $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	@$(COMPILE) --upgrade --resolution lowest-direct --output-file requirements-oldest.lock

# Installed once, and again when the lock changes. The lock is complete, so nothing beside it is
# resolved, and it holds evitlab's build backend, so that the last step needs no network.
$(STAMP): requirements.lock pyproject.toml
	@$(PY) -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null || { \
	  $(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	    echo "evitlab needs Python 3.11 or newer, which '$(PYTHON)' is not;" \
	      "name one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -m venv --clear .venv; }
	@echo "Installing the locked packages into .venv (the first time: minutes, some GB) ..."
	@set -o pipefail; $(PY) -m pip install --no-deps --progress-bar off -r requirements.lock | { \
	  count=0; while read -r word name _; do case "$$word" in \
	    Collecting|Processing) count=$$((count + 1)); \
	      if [ -t 1 ]; then printf '\r\033[K  %d: %s' $$count "$${name##*/}"; \
	      elif [ $$((count % 25)) = 0 ]; then echo "  $$count packages ..."; fi ;; \
	    Installing) if [ -t 1 ]; then printf '\r\033[K'; fi; \
	      echo "  unpacking $$count packages ..." ;; \
	  esac; done; }
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
