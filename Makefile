# Each target creates .venv on first use and reuses it afterwards.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c 'import venv' 2>/dev/null && echo python3.12 || echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
# One torch/BLAS thread per process: the demo and the tests run two processes at a time on a two-core machine.
export OMP_NUM_THREADS ?= 1
# Tests start many processes; each would compile the package's and the tests' sources anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-lowest coverage lint bench circuits docs dist clean

# An interrupted demo goes on where it was; a finished one only renders its report again (make clean starts anew).
demo: $(VENV)/.installed
	$(BIN)/qhw demo --out runs/demo $(if $(wildcard runs/demo/config.json),--resume)

# A process per core and one more, since some wait for a stand-in's answers; the tests of a file stay together, since they
# share what is slow to make.
PYTEST  = $(BIN)/python -m pytest --dist loadfile
CORES   = import os; print((os.cpu_count() or 1) + $(1))
test: $(VENV)/.installed-dev
	$(PYTEST) -n $$($(BIN)/python -c '$(call CORES,1)')

# From circuits to engines, mitigation and devices, jobs, run folders and commands, without what is marked slow: for a
# look in between. Training, pipelines of diffusers and studies are in `make test` alone.
FAST    = checkpoints circuits denoising devices execution experiment hardware masking mitigation runs test_*.py
test-fast: $(VENV)/.installed-dev
	$(PYTEST) -n $$($(BIN)/python -c '$(call CORES,0)') -m "not slow" $(addprefix tests/,$(FAST))

# The same with every dependency at the lowest version that pyproject.toml takes
LOWEST  = .venv-lowest
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest --dist loadfile -n $$($(LOWEST)/bin/python -c '$(call CORES,0)') -m "not slow" $(addprefix tests/,$(FAST))

# What test-fast reaches of the package, by lines and branches
coverage: $(VENV)/.installed-dev
	$(PYTEST) -n $$($(BIN)/python -c '$(call CORES,0)') -m "not slow" --cov --cov-branch --cov-report= $(addprefix tests/,$(FAST))
	$(BIN)/python -m coverage report

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

# Wheel and sdist in dist/, and the wheel tried in an empty environment
dist: $(VENV)/.installed-dev
	tools/dist.sh

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "qhw-diffusion needs Python 3.11, 3.12 or 3.13, not %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
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

$(LOWEST)/.installed: pyproject.toml
	python3.11 -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) dist runs site .pytest_cache .mypy_cache .ruff_cache
