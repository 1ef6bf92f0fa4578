PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-lake check hooks reference readme-check line-worth docs notebooks screens wheel install clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/qagent demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The rooms that stand on the database, on the oldest DuckDB that is supported, and a shop in a lake.
test-lake:
	$(PYTHON) -m venv .lake
	.lake/bin/pip install --quiet --disable-pip-version-check -e ".[dev,lake,postgres]" "moto[server]"
	.lake/bin/python -m pytest -n 2 --dist loadfile tests/shop tests/memory tests/live tests/ingest tests/utils

# Lint, format, types and layers; `.pre-commit-config.yaml` runs the same before a commit.
check: install
	$(BIN)/ruff check qagent_mlx cli tests notebooks docs
	$(BIN)/ruff format --check qagent_mlx cli tests docs
	$(BIN)/mypy
	$(BIN)/lint-imports

hooks: install
	$(BIN)/pip install --quiet --disable-pip-version-check pre-commit
	$(BIN)/pre-commit install

# The pages of settings, commands and HTTP, from the code.
reference: install
	$(BIN)/python docs/reference/generate.py
	$(BIN)/python docs/reference/commands_page.py
	$(BIN)/python docs/reference/http_page.py

# README's table against a fresh run of the commands behind it: some six minutes.
readme-check: install
	$(BIN)/python docs/check_readme.py

# What lines of memory are worth in the sample shop, learned anew: it comes with the sample data.
line-worth: install
	rm -rf .line-worth
	$(BIN)/qagent init --sample --shop .line-worth/shop
	$(BIN)/qagent index --anew --shop .line-worth/shop
	$(BIN)/python -c "import json; from qagent_mlx.shop.shop import Shop; from qagent_mlx.build import line_worth_document; \
	print(json.dumps(line_worth_document(Shop.open('.line-worth/shop'))))" > sample_data/line_worth.json
	rm -rf .line-worth

# The documentation as a site in `site/`; a dead link or a page without a place ends it.
docs: install
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	$(BIN)/zensical build --strict

# README's recorded session, from the present code in a real terminal (tmux): trains first, some five minutes.
screens: install
	rm -rf .screens
	$(BIN)/qagent init --sample --shop .screens/shop
	$(BIN)/qagent train sft --policy sample --shop .screens/shop
	$(BIN)/qagent train grpo --policy sft --steps 80 --seed 1 --shop .screens/shop
	$(BIN)/python tests/benchmarks/record.py notebooks/session.svg --shop .screens/shop --user u0550
	rm -rf .screens

# Wheel and source in `dist/`, and the wheel tried in an empty environment, outside of this folder.
wheel: install
	rm -rf dist .wheel
	$(BIN)/pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .wheel/venv
	.wheel/venv/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd .wheel && venv/bin/qagent doctor && venv/bin/qagent demo --yes < /dev/null
	rm -rf .wheel

# Runs the notebooks anew, with their outputs, in the folder where they lie: some ten minutes.
notebooks: install
	rm -rf notebooks/shop notebooks/mine notebooks/export notebooks/live
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[notebooks]"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.timeout=1800 --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

clean:
	rm -rf $(VENV) .lake demo-shop site dist .screens .wheel .pytest_cache .mypy_cache .ruff_cache .hypothesis
