# Every target makes what it needs; all of them can be repeated.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint bench clean

quickstart: .venv/installed
	$(BIN)/imnet-train

# One process per core (at most 8), each with one thread, because the tests mostly wait for the runs that they start.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed-dev
	mkdir -p build
	$(BIN)/imnet-bench all --json build/bench.json

.venv/bin/python:
	$(PYTHON) -m venv .venv || { echo "imnet: needs Python >= 3.11 with venv (Debian: apt install python3-venv)"; exit 1; }

# No file is compiled to bytecode in advance: that takes half a minute, and Python does it for those that it imports.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

SOURCES := pyproject.toml setup.py $(wildcard csrc/host/*)

.venv/installed: .venv/bin/python $(SOURCES)
	$(INSTALL) --editable .
	touch $@

.venv/installed-dev: .venv/bin/python $(SOURCES)
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build *.egg-info kernels/imnet_kernels/*.so
