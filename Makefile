# make demo    train a generator of handwritten digits, sample it, score it (set-up included)
# make test    set up and run the whole test-suite
# make studio  open the page        make lint    style and types        make bench    speed, as ratios

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := runs/digits-dit_flow

.PHONY: demo test studio lint bench setup clean
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "genlab needs Python >= 3.11; say make PYTHON=python3.12, for example" && false)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,huggingface]"
	@touch $(READY)

CORES := $(shell getconf _NPROCESSORS_ONLN)

demo: $(READY)
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process $(CORES) genlab/train.py configs/digits/dit_flow.yaml
	$(BIN)/genlab sample $(RUN) --count 1000 --seed 1 --out $(RUN)/samples-1000
	$(BIN)/genlab evaluate $(RUN)/samples-1000 --against digits --out $(RUN)/report
	@echo
	@echo "Look at   $(RUN)/samples-1000/grid.png   and   $(RUN)/report/report.html"
	@echo "Next:     make studio   and play with it in the browser"

test: $(READY)
	$(BIN)/python -m pytest

studio: $(READY)
	$(BIN)/python app.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
