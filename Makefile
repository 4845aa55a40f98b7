# Everything is run from here. `make train` and `make test` need Python 3.11+, a C++ compiler and make, no more.

PYTHON ?= python3
CONFIG ?= configs/quickstart.toml
N      ?= 1
ARGS   ?=

ENV := .venv
PY  := $(ENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

# An environment is good for one set of locks in one place: the stamps are named by both and written last, so an
# interrupted set-up, changed pins or a moved checkout are all seen, and a second call does nothing.
STATE   := $(shell { echo '$(CURDIR)'; cat requirements/*.txt; } | sha256sum | cut -c1-16)
TRAIN   := $(ENV)/.train-$(STATE)
DEV     := $(ENV)/.dev-$(STATE)
BUILT   := $(ENV)/.built
# One rank needs no launcher, which answers Ctrl-C with a traceback of its own. For more, it gives them a day to end after
# Ctrl-C, in place of 30 seconds: more than any rollout.deadline and the update behind it. A second one ends them at once.
LAUNCH  := $(if $(filter 1,$(N)),$(PY),$(ENV)/bin/torchrun --standalone --shutdown-timeout=86400 --nproc-per-node=$(N))
BENCHES := $(patsubst bench/%.py,bench.%,$(filter-out bench/__init__.py bench/harness.py,$(wildcard bench/*.py)))
SOURCES := setup.py pyproject.toml $(wildcard csrc/* csrc/*/*)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-dev setup-bench sglang bubblewrap chromium train test test-sglang test-slow lint format lock bench-quick results clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo
	@echo 'make train CONFIG=path.toml N=ranks ARGS="key=value ..."'

setup: $(TRAIN) $(BUILT) bubblewrap ## what training needs, in .venv

setup-dev: setup $(DEV) ## what the tests and checks need as well

setup-bench: setup-dev ## the libraries that benches compare with
	$(PIP) -r requirements/bench.txt

sglang: ## SGLang for CPU servers in .venv-sglang, an environment of its own that outlives this checkout
	@tools/sglang-cpu/build.sh $(PYTHON) .venv-sglang

train: setup ## set up what is missing, then train CONFIG on N ranks
	$(LAUNCH) -m mappa.train $(CONFIG) $(ARGS)

test: setup-dev ## set up what is missing, then run every test but the slow ones
	$(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

test-sglang: setup-dev sglang ## run the sampler and a whole job against real SGLang servers on the CPU
	$(PY) -m pytest tests/sglang -m 'sglang and not slow' $(ARGS)

test-slow: setup-dev sglang ## run the slow tests alone
	$(PY) -m pytest -m slow $(ARGS)

lint: setup-dev ## ruff, mypy, and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_imports.py

format: setup-dev ## let ruff rewrite what it can
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .

bench-quick: setup-dev ## run every bench on small shapes: that it runs, not how fast
	@set -e; for program in $(BENCHES); do echo "== $$program"; $(PY) -m $$program --quick; done

results: setup ## train the team with and without per-action rewards (hours; goes on where it was) and write docs/results.md
	$(PY) -m bench.arms --json bench/results/results.json --page docs/results.md $(ARGS)

lock: setup-dev ## pin what is in .venv now, after an upgrade by hand
	$(PY) requirements/lock.py

clean: ## remove everything that was built or installed here; runs/ stays
	rm -rf $(ENV) .venv-sglang build kernels/build dist *.egg-info kernels/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f kernels/mappa_kernels/_C*.so

$(TRAIN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'mappa needs Python 3.11 or newer; name one that is: make PYTHON=python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
	@echo 'Setting up $(ENV) (once; a few minutes)'
	@rm -rf $(ENV)
	@$(PYTHON) -m venv $(ENV)
	@$(PIP) -r requirements/build.txt
	@$(PIP) -r requirements/torch.txt -c requirements/train.txt
	@$(PIP) -r requirements/train.txt
	@$(PIP) --no-deps -r requirements/data.txt
	@touch $@

# The first stamp is away meanwhile: interrupted here, the whole environment is made anew.
$(DEV): | $(TRAIN)
	@echo 'Adding the tools for tests and checks'
	@rm $(TRAIN)
	@$(PIP) -r requirements/dev.txt
	@touch $(TRAIN) $@

$(BUILT): $(SOURCES) | $(TRAIN)
	@echo 'Building the C++ extension'
	@PYTHONWARNINGS='ignore:Editable installation' $(PIP) --no-deps --no-build-isolation --editable .
	@$(PY) -c 'import mappa_kernels, mappa_kernels._C' 2>/dev/null || echo \
	  'It was not built, so the kernels run on their slower torch reference. To see why: $(PY) setup.py build_ext' >&2
	@touch $@

bubblewrap:
	@command -v bwrap >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'Installing bubblewrap, which isolates the code that models write'; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends bubblewrap >/dev/null; \
	  else \
	    echo 'bubblewrap is missing: code that models write cannot be isolated. Run: sudo apt-get install -y bubblewrap' >&2; \
	  fi; }

chromium: ## the browser in which the page of `mappa view` is tested; without it those tests are left out
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'Installing chromium, in which the page of mappa view is tested'; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; \
	  fi; \
	  command -v chromium >/dev/null || \
	    echo 'chromium is missing: the tests of the page of mappa view are left out. Run: sudo apt-get install -y chromium' >&2; }
