# make demo | test | test-slow | test-gpu | test-slurm | lint | format | docs | clean
# The first target that needs it creates .venv and installs revvideo with its dependencies into it.

PYTHON ?= python3
SEED ?= 0
# pytest processes; each computes on one thread, so that two of them fill two cores and no more.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Ground-truth clips for local tests: they lie beside the checkout or nowhere.
ifneq ($(wildcard ../shared/clips/.),)
export REVVIDEO_CLIPS ?= $(abspath ../shared/clips)
endif

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=10

.PHONY: demo test test-slow test-gpu test-slurm lint format docs clean

demo: $(INSTALLED)
	$(BIN)/revvideo demo --seed $(SEED)

test: $(INSTALLED)
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "not slow and not gpu and not slurm"

test-slow: $(INSTALLED)
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "slow and not gpu and not slurm"

test-gpu: $(INSTALLED)
	$(PYTEST) -m gpu

# Everything that runs on a local Slurm cluster; without Slurm it is installed where that is allowed, else the tests skip.
test-slurm: $(INSTALLED)
	.ci/install-slurm
	$(PYTEST) -m "(slurm or slurm_short) and not gpu"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	mkdir -p docs
	$(BIN)/python -m revvideo.config.reference > docs/config.md.new
	mv docs/config.md.new docs/config.md

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find revvideo tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@
