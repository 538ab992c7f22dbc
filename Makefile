# make run            install, run every notebook, write runs/report.html
# make test           install what tests need, run them, name the ten slowest
# make test-fast      the same without the tests that take over five seconds
# make check          what CI runs besides: style, types, layout, every notebook in small
# make notebooks SCALE=smoke SET="SEED=3 INSTRUCTION=make it night" ONLY="03 07"
# make publish        one clean run, written back into notebooks/ (ONLY="03" for some)
# make readme         the README's tables and drawing, from data/results/*.json
# make address REPO=owner/name     links to Colab; an empty REPO removes them
# make bench          the benchmarks that run on a CPU, about an hour
# make bench-gpu      those that need a GPU, or show something else there
# make format         let ruff format code and notebooks
#
# PYTHON=python3.12   another interpreter (3.11 or newer)
# PIP_ARGS="..."      passed to pip: --index-url, --extra-index-url or --find-links of
#                     the CPU or CUDA builds of PyTorch that suit this machine

SHELL := /bin/bash
PYTHON ?= python3
PIP_ARGS ?=
SCALE ?= miniature
SET ?=
ONLY ?=
REPO ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q $(PIP_ARGS) -c constraints.txt
CODE := ip2p_lib jobs benchmarks tests notebooks
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

# The two small sizes read shipped weights only; the two large ones read the Hub.
HF_HUB_OFFLINE ?= $(if $(filter sd15 paper,$(SCALE)),0,1)
export HF_HUB_OFFLINE
export HF_HUB_DISABLE_TELEMETRY := 1
export SET

.PHONY: help run test test-fast check notebooks publish readme address bench bench-gpu \
  format
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

run: $(VENV)/base.stamp
	$(BIN)/python -m jobs.notebooks --out runs --set SCALE=miniature

test: $(VENV)/test.stamp
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(VENV)/test.stamp
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

check: $(VENV)/test.stamp
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layout.py
	$(MAKE) --no-print-directory notebooks SCALE=smoke

notebooks: $(VENV)/base.stamp
	$(BIN)/python -m jobs.notebooks $(ONLY) --out runs/$(SCALE) \
	  --set SCALE=$(SCALE) --set "$$SET"

publish: $(VENV)/base.stamp
	$(BIN)/python -m jobs.notebooks.publish $(ONLY)

readme: $(VENV)/base.stamp
	$(BIN)/python -m jobs.readme.table

address: $(VENV)/base.stamp
	$(BIN)/python -m jobs.notebooks.address "$(REPO)"

# benchmarks/releases.py compares environments; it says how it is run.
bench: $(VENV)/test.stamp
	set -e; for line in miniature.world editing.one_edit rendering.speed training.speed \
	  filtering.calibration "filtering.calibration --cross-attention 1" \
	  triplets.service fresh_clone; do \
	  echo "$$line"; $(BIN)/python -m benchmarks.$$line; done

bench-gpu: $(VENV)/test.stamp
	set -e; for line in miniature.world training.speed rendering.speed \
	  "training.speed --size sd15" "rendering.speed --size sd15" \
	  rendering.tree_sizes triplets.lora; do \
	  echo "$$line"; $(BIN)/python -m benchmarks.$$line; done

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# The font cache is built here, so that no notebook prints that it is being built.
$(VENV)/base.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): about 2 GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@$(BIN)/python -c 'import matplotlib.font_manager'
	@touch $@

$(VENV)/test.stamp: $(VENV)/base.stamp
	$(PIP) -e '.[test]'
	@touch $@
