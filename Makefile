# Two commands: `make demo` raises a small Llama here; `make test` runs the tests. Each does its own set-up in .venv.
#
#   make demo PYTHON=python3.12                     another Python (3.11 to 3.13)
#   make demo TORCH=torch TORCH_INDEX=              the CUDA build of PyTorch, for owners of an NVIDIA GPU (the default
#                                                   where nvidia-smi is found)
#   make test WORKERS=8                             so many files of tests at once, each with one thread of arithmetic

PYTHON ?= python3
VENV ?= .venv
PAGES ?=
DEMO ?= runs/demo
WORKERS ?= 2

ifeq ($(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu),gpu)
TORCH ?= torch
TORCH_INDEX ?=
else
TORCH ?= torch==2.13.0
TORCH_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu
endif

PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-room test-slow soak gpu lint install dev base-model clean

demo: install
	$(VENV)/bin/herd demo $(DEMO) $(if $(PAGES),--pages $(PAGES))

test: dev
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --durations 15 -rs

# one room's tests, the slow ones too: make test-room ROOM=infer
test-room: dev
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "not gpu and not soak" -rs tests/$(ROOM)

test-slow: dev
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m slow --durations 25 -rs

soak: dev
	$(VENV)/bin/python -m pytest -m soak

# every GPU test and benchmark on one card, ten minutes; without a card: make gpu GPU="--device cpu --tiny" rehearses it
gpu: dev
	$(VENV)/bin/python -m benchmarks.gpu $(GPU)

lint: dev
	$(VENV)/bin/ruff check herd tests benchmarks
	$(VENV)/bin/ruff format --check herd tests benchmarks
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

# SmolLM2-135M-Instruct (98 MB) and the encoder all-MiniLM-L6-v2 (84 MB) into ../base-model, or into HERD_BASE_MODEL: tests and benchmarks of a real model need it
base-model: dev
	$(VENV)/bin/python -m benchmarks.base_model

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Herd needs Python 3.11 to 3.13, $(PYTHON) is `$(PYTHON) --version`; say which: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(VENV)/bin/python
	@echo "installing PyTorch ($(TORCH)) and Herd into $(VENV) ..."
	$(PIP) --retries 1 $(TORCH_INDEX) "$(TORCH)"
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(PIP) --editable . --constraint constraints.txt
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.torch
	$(PIP) --editable ".[dev]" --constraint constraints.txt
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
