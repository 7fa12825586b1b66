# `make demo` and `make test` do everything on a fresh machine; nothing outside .venv/, runs/ and the cache folder is written.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-full test lint clean

demo: .venv/installed
	$(BIN)/python benchmarks/compare.py --suite benchmarks/suites/demo.toml --out runs/demo

demo-full: .venv/installed
	$(BIN)/python benchmarks/compare.py --suite benchmarks/suites/demo-full.toml --out runs/demo-full

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The environment is complete when the stamp exists; an install that was cut short is made again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
