# `make demo` and `make test` do all their own set-up. `make help` lists the rest.
BACKEND ?= cpu
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_AUDIT := 2.10.1
STAMP := $(VENV)/.installed-$(BACKEND)

.PHONY: demo test test-rest bench bench-serve bench-start bench-cluster chaos audit lint format install lock doctor clean help
.DEFAULT_GOAL := help

demo: $(STAMP)  ## the whole loop on rendered rooms, without GPU, weights or data
	$(BIN)/hatch demo

test: $(STAMP)  ## each promise once, on real vLLM, Ray and Serve: at most 15 minutes on two cores
	$(BIN)/python -m pytest -m "not rest"

test-rest: $(STAMP)  ## every other test: more deaths, lost nodes, `ray up`, HAProxy, load, ablation: at most 30 minutes
	$(BIN)/python -m pytest -m rest

bench: $(STAMP)  ## speed against naive, TRL and bare vLLM; writes bench/results and docs/performance.md
	for name in imports sft verifiers pairs rollouts learner step growth page; do $(BIN)/python -W ignore -m bench.$$name || exit 1; done

bench-serve: $(STAMP)  ## the service against its bare engine, and MINUTES (10) of mixed load
	$(BIN)/python -W ignore -m bench.serve && $(BIN)/python -W ignore -m bench.serve_load --minutes $(or $(MINUTES),10) && \
	  $(BIN)/python -m bench.page

bench-start: $(STAMP)  ## seconds until the first step and between stages, against an older commit
	$(BIN)/python -W ignore -m bench.start && $(BIN)/python -m bench.page

bench-cluster: $(STAMP)  ## reward actors that scale while they work, and what `hatch plan` predicts against runs
	for name in scaling planning page; do $(BIN)/python -W ignore -m bench.$$name || exit 1; done

chaos: $(STAMP)  ## kill every kind of process in a run, at random (SEEDS=1,2,3), and compare with a run left alone
	$(BIN)/python -m tests.chaos $(if $(SEEDS),--seeds $(SEEDS))

lint: $(STAMP)  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(STAMP)  ## known vulnerabilities of what the lock files pin (asks the OSV database)
	for lock in cpu gpu; do \
	  $(BIN)/uv tool run pip-audit@$(PIP_AUDIT) --requirement requirements/$$lock.lock --no-deps --disable-pip \
	    --vulnerability-service osv || exit 1; done

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

doctor: $(STAMP)  ## look at this machine and say what is missing, and the fix
	$(BIN)/hatch doctor

install: $(STAMP)  ## the environment in .venv, from requirements/cpu.lock (BACKEND=gpu: gpu.lock)

# The stamp is newer than all it was made from, so a second run installs nothing.
$(STAMP): requirements/$(BACKEND).lock requirements/install.py pyproject.toml
	@python="$(PYTHON)"; \
	for candidate in $(BIN)/python python3.11 python3.12 python3 python; do \
	  [ -n "$$python" ] && break; \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then \
	    python=$$($$candidate -c 'import os, sys; print(os.path.realpath(sys.executable))'); \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No working Python 3.11 or 3.12 found. Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv)" >&2; \
	  echo "or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; \
	fi; \
	"$$python" requirements/install.py --backend $(BACKEND)
	@rm -f $(VENV)/.installed-* && touch $@

lock: $(STAMP)  ## resolve pyproject.toml again into requirements/*.lock
	$(BIN)/python requirements/lock.py

clean:  ## remove the environment and the tools' caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo "  Variables: PYTHON=/path/to/python3.11  BACKEND=cpu|gpu  SEEDS=1,2,3  MINUTES=10"
