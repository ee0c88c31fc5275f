# `make` lists the targets. Every target sets up what it needs by itself and skips what is up to date.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.gpumodd-setup
# The newest of these that runs and is at least 3.11 makes the environment; PYTHON=… names one instead.
PYTHONS := python3.13 python3.12 python3.11 python3

# The stamp holds the tree's path: scripts of an environment that was copied or moved point to the wrong place.
ifneq ($(file <$(STAMP)),$(CURDIR))
.PHONY: $(STAMP)
endif
# Whoever names a Python means that one, also when an environment is there.
ifneq ($(PYTHON),)
.PHONY: $(STAMP)
endif

.PHONY: help
help: ## list the targets
	@printf 'gpumodd: make TARGET [ARGS="…"] [PYTHON=python3.12]\n\n'
	sed -nE 's/^([a-z][a-z-]*):.*## (.*)$$/  \1\t\2/p' Makefile | expand -t 14

.PHONY: demo
demo: $(STAMP) ## the main job on this machine: no GPU and no systemd needed
	@$(BIN)/gpumodd demo $(ARGS)

.PHONY: test
test: $(STAMP) ## run the tests; what this machine lacks is skipped with a reason
	@$(BIN)/pytest $(ARGS)

.PHONY: test-real
test-real: $(STAMP) ## run the tests; what this machine lacks is a failure
	@GPUMOD_REQUIRE_REAL=1 $(BIN)/pytest $(ARGS)

.PHONY: soak
soak: $(STAMP) ## kill, cut off and fill up a real daemon for long; ROUNDS=100, SEED=… repeats a run, ARGS="-k bus" picks
	@GPUMOD_REQUIRE_REAL=1 GPUMODD_SOAK_ROUNDS=$(or $(ROUNDS),100) GPUMODD_SOAK_SEED=$(SEED) \
	    $(BIN)/pytest tests/soak --timeout 3600 $(ARGS)

.PHONY: mutate
mutate: $(STAMP) ## take the safeguards out, one at a time: the tests have to notice
	@$(BIN)/pytest tests/mutation $(ARGS)

.PHONY: check
check: $(STAMP) ## lint, format, types, import contracts, architecture
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/arch $(ARGS)

.PHONY: format
format: $(STAMP) ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(STAMP) ## measure against the baselines in benchmarks/
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: lock
lock: ## resolve pyproject.toml into requirements.lock (needs uv); ARGS=--upgrade takes newer versions
	@if ! uv --version >/dev/null 2>&1; then
	    echo 'lock: cannot resolve without uv: python3 -m pip install uv' >&2
	    exit 1
	fi
	# No index, path or option of this machine may end up in the file: it has to install anywhere.
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	    --quiet --output-file requirements.lock $(ARGS)
	if grep -nE '://|^--' requirements.lock; then
	    echo 'lock: requirements.lock names a registry or an option (see above)' >&2
	    exit 1
	fi

.PHONY: setup
setup: $(STAMP) ## make the environment in .venv from the lock file, nothing else

# uv when it is there and works, else venv and pip. Both install exactly the lock file, checked by hash.
$(STAMP): requirements.lock pyproject.toml
	@say() { printf 'setup: %s\n' "$$*" >&2; }
	runs() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
	python=
	for candidate in $(or $(PYTHON),$(PYTHONS)); do
	    if runs "$$candidate"; then python=$$candidate; break; fi
	done
	if [ -z "$$python" ]; then
	    say 'cannot find Python 3.11 or newer (tried: $(or $(PYTHON),$(PYTHONS)))'
	    say 'on Debian or Ubuntu: apt-get install python3 python3-venv; or name one: make PYTHON=/path/to/python3.12 …'
	    exit 1
	fi
	version() { "$$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
	with_uv() { uv --version >/dev/null 2>&1; }
	fresh=yes
	if runs $(BIN)/python && { [ ! -e $(STAMP) ] || [ "$$(cat $(STAMP))" = "$(CURDIR)" ]; }; then
	    fresh=
	    [ -z "$(PYTHON)" ] || [ "$$(version $(BIN)/python)" = "$$(version "$$python")" ] || fresh=yes
	fi
	if [ -n "$$fresh" ]; then
	    say "making $(VENV) with $$python ($$(version "$$python"))"
	    rm -rf $(VENV)
	    if "$$python" -c 'from ensurepip import version' >/dev/null 2>&1; then
	        "$$python" -m venv $(VENV)
	    elif with_uv; then
	        uv venv --quiet --no-python-downloads --seed --python "$$(command -v "$$python")" $(VENV)
	    else
	        say "$$python lacks the module ensurepip, so it cannot make an environment"
	        say 'on Debian or Ubuntu: apt-get install python3-venv (or install uv)'
	        exit 1
	    fi
	fi
	rm -f $(STAMP)
	by_uv() {
	    uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock &&
	        uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	}
	by_pip() {
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock &&
	        $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	}
	say 'installing requirements.lock'
	# uv does not read pip's configuration: behind a mirror that only pip knows, pip still works.
	{ with_uv && by_uv; } || by_pip
	printf '%s' "$(CURDIR)" >$(STAMP)

.PHONY: clean
clean: ## remove the environment, caches and build results
	@rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
