# `make demo` runs the main job, `make test` passes the tests; both set themselves up from nothing but Python.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data
JOBS ?= 2

.PHONY: demo docs test test-fast test-slow test-arviz1 test-pythons lint check bench results weights lessons fuzz kill

demo: .venv/.package
	$(BIN)/pyro-avse demo --out demo

# A worker a core, one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: .venv/.development
	$(PYTEST) -m "not slow"

# For the loop at the desk: without what trains, starts processes or samples for long.
test-fast: .venv/.development
	$(PYTEST) -q -m "not slow and not long"

test-slow: .venv/.development
	$(PYTEST)

# ArviZ 1 wants a newer Python than 3.11; ARVIZ1_PYTHON=... names one that is not on the path.
ARVIZ1_PYTHON ?= $(shell for p in python3.14 python3.13 python3.12; do $$p -c "" 2>/dev/null && echo $$p && break; done)
test-arviz1:
	@if [ -z "$(ARVIZ1_PYTHON)" ]; then echo "no Python 3.12 or later was found: ArviZ 1 is untested"; else \
	  $(ARVIZ1_PYTHON) -m venv .venv-arviz1 && \
	  .venv-arviz1/bin/python -m pip install --quiet --editable . "arviz>=1" pytest hypothesis && \
	  .venv-arviz1/bin/python -m pytest -m "not slow" tests/test_diagnostics.py; \
	fi

# The Pythons that are declared, each in an environment of its own, as far as they are on the path.
PYTHONS ?= python3.11 python3.12 python3.13
test-pythons:
	@for p in $(PYTHONS); do \
	  if ! $$p -c "" 2>/dev/null; then echo "$$p was not found: untested"; continue; fi; \
	  $$p -m venv .venv-$$(basename $$p) && \
	  .venv-$$(basename $$p)/bin/python -m pip install --quiet --editable . pytest hypothesis && \
	  .venv-$$(basename $$p)/bin/pyro-avse demo --out demo && \
	  .venv-$$(basename $$p)/bin/python -m pytest -q -m "not slow" tests/test_front_door.py tests/test_packaging.py || exit 1; \
	done

lint: .venv/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict -p pyro_avse
	$(BIN)/mypy --strict examples/*.py

check: lint
	$(PYTEST) -m "not slow" --cov --cov-report=term

# Ten minutes each: 2,000 mutated files, 200 kills; their seeds are printed.
fuzz: .venv/.development
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --files 2000

kill: .venv/.development
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kill.py --kills 200

bench: .venv/.development
	$(BIN)/python benchmarks/em_iteration.py
	$(BIN)/python benchmarks/em_levers.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/svi_step.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/time_to_quality.py --data $(DATA)/grid --out runs/time_to_quality \
	  --noise $(DATA)/noise/street_tram.flac,$(DATA)/noise/kitchen.flac

# The tables of docs/RESULTS.md that set the defaults; the commands of the others stand there. Hours: it trains first.
results: .venv/.development runs/synth
	for speaker in s1 s4 s26; do \
	  $(BIN)/python benchmarks/leave_one_out.py --data $(DATA) --synth runs/synth --hold-out $$speaker --only default \
	    --models v_vae av_vae min_vae_v2 min_vae_v3 vae_mm --without-librispeech --out runs/leave_one_out --clips 3 || exit 1; \
	done
	$(BIN)/python benchmarks/robustness.py --data $(DATA) --left-out runs/leave_one_out --out runs/robustness --jobs $(JOBS)
	$(BIN)/python benchmarks/oracle_ladder.py --data $(DATA) --left-out runs/leave_one_out --clips 2 --jobs $(JOBS)

# Every notebook anew, beside the stored ones: runs/lessons.
lessons: .venv/.lessons
	mkdir -p runs/lessons
	for notebook in lessons/*.ipynb; do \
	  OMP_NUM_THREADS=1 $(BIN)/jupyter execute --timeout=600 $$notebook \
	    --output=$(abspath runs/lessons)/$$(basename $$notebook) || exit 1; \
	done

# The site, docs/_build/html/index.html: warnings are errors, notebooks are run, links inside it are followed.
docs: .venv/.docs
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -d docs/_build/doctrees docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

runs/synth: .venv/.development
	$(BIN)/pyro-avse data synth --out $@ --speakers 100 --minutes 60 --seed 0

# LibriSpeech's excerpts as a corpus: links named as its splits.
runs/speech:
	mkdir -p $@
	ln -sfn $(abspath $(DATA))/speech/librispeech $@/train
	ln -sfn $(abspath $(DATA))/speech/librispeech_valid $@/valid

# The bundled weights, from the data folder and an hour of synthetic talkers, one from the other: priors, then the guides
# of those. A run that was stopped goes on where it was. Hours: docs/RESULTS.md, "Weights".
TRAINED := --data $(DATA)/commands --data $(DATA)/grid --data runs/synth --data runs/speech
BUNDLED := pyro_avse/weights/bundled
PRIORS := a_vae v_vae av_vae min_vae_v1 min_vae_v2 min_vae_v3 switching rvae dkf av_rvae av_dkf
GUIDED := a_vae min_vae_v1 min_vae_v2 vae_mm rvae dkf av_rvae av_dkf
weights: .venv/.development runs/speech runs/synth
	for model in $(PRIORS); do \
	  $(BIN)/pyro-avse train default/$$model $(TRAINED) --out runs/$$model --resume && \
	  $(BIN)/python -m pyro_avse.weights.bundle $$model runs/$$model/weights.safetensors || exit 1; \
	done
	for model in $(GUIDED); do \
	  $(BIN)/pyro-avse train default/guide_$$model $(TRAINED) --out runs/guide_$$model --resume && \
	  cp runs/guide_$$model/weights.safetensors $(BUNDLED)/$$model.guide.safetensors || exit 1; \
	done
	for kind in guide_a_vae_live:live separate_a_vae:separate; do \
	  $(BIN)/pyro-avse train default/$${kind%:*} $(TRAINED) --out runs/$${kind%:*} --resume && \
	  cp runs/$${kind%:*}/weights.safetensors $(BUNDLED)/a_vae.$${kind#*:}.safetensors || exit 1; \
	done

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.package: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.development: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[app,cluster,dev,synth]"
	touch $@ .venv/.package

.venv/.lessons: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[lessons]"
	touch $@ .venv/.package

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs,synth]"
	touch $@ .venv/.package
