# autokd: the two commands of the README are `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check ui bench clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

demo: $(INSTALLED)  ## find a student for a teacher of handwritten digits
	$(BIN)/autokd search --teacher digits --budget 90s

test: $(INSTALLED)  ## the whole test-suite
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(INSTALLED)  ## browse the runs of the demo on loopback
	$(BIN)/autokd ui

bench: $(INSTALLED)  ## what we claim, measured, in three quarters of an hour; nothing else should run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.core --short
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.search --short

clean:
	rm -rf $(VENV) build dist *.egg-info
