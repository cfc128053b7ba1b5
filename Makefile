# `make demo` and `make test` are all that a fresh machine with Python 3.11+ and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
TESTS := $(VENV)/.tests
DEV := $(VENV)/.dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all models data lint docs install clean

install: $(DEV)

# torch first and alone: the constraints pin it, and its dependants then leave it as it is
$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(TESTS): $(CORE)
	$(PIP) --editable '.[test]'
	touch $@

$(DEV): $(TESTS)
	$(PIP) --editable '.[dev]'
	touch $@

demo: $(CORE)
	$(BIN)/fortifai run demo

# a process for each core, each of them with one thread; a file's tests share what they make, and
# files begin in the order of conftest
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(TESTS)
	$(PYTEST)

# the long ones too: simulations, kills, whole runs, Ray on two nodes, README and guides as they
# stand, wheel and sdist; and, where `make models` was, real checkpoints
test-all: $(DEV)
	$(PYTEST) -m ""

# real data for tests, kept in ~/.cache/fortifai/data: from FROM, else from ../shared/data; what is
# in neither is named with its source
data: $(TESTS)
	$(BIN)/python -m tests.real_data $(FROM)

# two real checkpoints for test-all, about 350 MB, kept in ~/.cache/fortifai/models
models: $(TESTS)
	$(BIN)/python -m tests.real_models

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the site, in build/site; a link, file or symbol that is not there fails
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build runs
