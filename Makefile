# `make demo` and `make test` are all that a fresh machine with Python 3.11+ and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all models lint install clean

install: $(INSTALLED)

# torch first and alone: the constraints pin it, and its dependants then leave it as it is
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/fortifai run demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m ""

# two real checkpoints for the slow tests, about 350 MB, kept in ~/.cache/fortifai/models
models: $(INSTALLED)
	$(BIN)/python -m tests.real_models

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
