# `make demo` and `make test` are all that a fresh machine with Python 3.11+ and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all test-pretrained models data lint install clean

install: $(INSTALLED)

# torch first and alone: the constraints pin it, and its dependants then leave it as it is
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/fortifai run demo

# a process for each core, each of them with one thread; a file's tests share what they make
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: $(INSTALLED)
	$(PYTEST)

test-all: $(INSTALLED)
	$(PYTEST) -m ""

# on real checkpoints; one process, since a model of 270 million parameters fills its memory
test-pretrained: models
	$(BIN)/python -m pytest -m pretrained

# real data for tests, kept in ~/.cache/fortifai/data: from FROM, else from ../shared/data; what is
# in neither is named with its source
data: $(INSTALLED)
	$(BIN)/python -m tests.real_data $(FROM)

# two real checkpoints for the slow tests, about 350 MB, kept in ~/.cache/fortifai/models
models: $(INSTALLED)
	$(BIN)/python -m tests.real_models

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
