# Each target creates .venv on first use and reuses it afterwards.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c 'import venv' 2>/dev/null && echo python3.12 || echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
# One torch/BLAS thread per process: the demo and the tests run two processes at a time on a two-core machine.
export OMP_NUM_THREADS ?= 1
# Tests start many processes; each would compile the package's and the tests' sources anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast lint bench circuits docs clean

# An interrupted demo goes on where it was; a finished one only renders its report again (make clean starts anew).
demo: $(VENV)/.installed
	$(BIN)/qhw demo --out runs/demo $(if $(wildcard runs/demo/config.json),--resume)

# A process per core and one more, since some wait for a stand-in's answers; the tests of a file stay together, since they
# share what is slow to make.
PYTEST  = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
CORES   = import os; print((os.cpu_count() or 1) + $(1))
test: $(VENV)/.installed-dev
	$(PYTEST) -n $$($(BIN)/python -c '$(call CORES,1)')

# From circuits to engines, mitigation and devices, jobs, run folders and commands, without what is marked slow: for a
# look in between. Training, pipelines of diffusers and studies are in `make test` alone.
FAST    = checkpoints circuits denoising devices execution experiment hardware masking mitigation runs test_*.py
test-fast: $(VENV)/.installed-dev
	$(PYTEST) -n $$($(BIN)/python -c '$(call CORES,0)') -m "not slow" $(addprefix tests/,$(FAST))

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

# What maintainers do when a circuit of the package changes: write circuits/ anew.
circuits: $(VENV)/.installed-dev
	$(BIN)/python -m tools.circuits export

# The documentation as a site, in site/: every warning (a dead link, a page in no menu) is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 13) else "qhw-diffusion needs Python 3.11 or 3.12, not %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml Makefile | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[pipelines]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache
