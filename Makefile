# make tutorial | test | test-all | lab | reproduce: each makes .venv first, then does its job.
# Options of tutorial: PROFILE= DATA= LAYOUT= RUN= SEED=, for example
#   make tutorial DATA=../my-scenes LAYOUT=pairs RUN=mine
# Another Python: make env PYTHON=python3.12. A CPU-only torch: UV_TORCH_BACKEND=cpu make env

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

option = $(if $($(1)),--$(2) '$($(1))')
OPTIONS = $(call option,PROFILE,profile) $(call option,DATA,data) $(call option,LAYOUT,layout) \
	$(call option,RUN,run) $(call option,SEED,seed)

.PHONY: help env tutorial test test-all lab reproduce lint gallery

help:
	@sed -n '1,4s/^# //p' Makefile

env: $(VENV)/installed

# uv installs in a fifth of pip's time. torch and torchvision come from one index in one go: a CPU
# build of one does not work with a CUDA build of the other.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("Python " + v + " is too old: 3.11 or newer is needed; name one, as in make env PYTHON=python3.12.")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	@echo 'Installing into .venv: some minutes and 5 GB the first time.'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test]'
	@touch $@

tutorial: env
	$(BIN)/python -m umsf_lib tutorial $(OPTIONS)

test: env
	$(BIN)/python -m pytest

test-all: env
	$(BIN)/python -m pytest -m 'slow or not slow'

lab: env
	$(BIN)/jupyter lab notebooks/01_data_preparation.ipynb

# Hours: what the records do not hold yet is run, then notebooks and tables are made.
SEEDS ?= 0,1,2,3,4
reproduce: PROFILE := $(or $(PROFILE),quick-sgd)
reproduce: env
	for suite in baselines ablations scale; do $(BIN)/umsf sweep --suite $$suite --seeds $(SEEDS) $(OPTIONS) || exit; done
	for name in 07_comparison 08_ablations 09_supervised_ceiling 10_spatial_contrast; do $(BIN)/umsf notebook $$name $(OPTIONS) || exit; done
	for suite in baselines ablations scale; do $(BIN)/umsf report --keep --suite $$suite --seeds $(SEEDS) $(OPTIONS) || exit; done
	$(BIN)/python benchmarks/fill_tables.py

lint: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

gallery: env
	$(BIN)/python -m umsf_lib gallery $(OPTIONS)
