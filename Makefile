# make demo: set up, then run the main job on real data.   make test: set up, then everything CI checks.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: demo test slow coverage setup clean

demo: $(READY)
	$(BIN)/qtrack run pipelines/digits.yaml -v

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile

slow: $(READY)
	$(BIN)/pytest -m slow -n 2 --dist loadfile

coverage: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --cov=qtrack --cov-report=term --cov-fail-under=90

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV)
