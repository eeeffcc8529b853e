# `make demo` runs the main job, `make test` passes the tests; both set themselves up from nothing but Python.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data

.PHONY: demo test test-slow lint check bench results weights

demo: .venv/.package
	$(BIN)/pyro-avse demo --out demo

test: .venv/.development
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.development
	$(BIN)/python -m pytest

lint: .venv/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict -p pyro_avse

check: lint
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term

bench: .venv/.development
	$(BIN)/python benchmarks/em_iteration.py

# The tables of docs/RESULTS.md, from the data folder.
results: .venv/.development
	$(BIN)/python benchmarks/enhancement_table.py --data $(DATA)

# The bundled weights, from the data folder and an hour of synthetic talkers, in three stages.
weights: .venv/.development
	$(BIN)/pyro-avse data synth --out runs/synth --speakers 100 --minutes 60 --seed 0
	for model in a_vae v_vae min_vae_v2; do \
	  $(BIN)/pyro-avse train default/$$model --data $(DATA)/commands --data $(DATA)/grid \
	    --data runs/synth --out runs/$$model --resume && \
	  cp runs/$$model/weights.safetensors pyro_avse/weights/$$model.safetensors || exit 1; \
	done

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.package: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.development: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[synth,dev]"
	touch $@ .venv/.package
