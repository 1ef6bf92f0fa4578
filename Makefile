PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check install clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/qagent demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check qagent_mlx cli tests
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo-shop .pytest_cache .mypy_cache .ruff_cache .hypothesis
