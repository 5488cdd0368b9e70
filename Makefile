# make demo    train a small transformer with generated optimizers (installs what it needs into .venv first)
# make test    all checks and tests
# make test-quick   a part of them, for every commit
#
# TORCH_INDEX  where torch comes from if none is installed yet and pip has no index settings of its own;
#              by default PyTorch's builds for the CPU.
# PYTHON       the Python that makes .venv; 3.11 or newer.
# OPTGEN_SKIP_PYCUDA=1   make test without PyCUDA; tests that need it are skipped.
# OPTGEN_CUDA_HEADERS    the folder with cuda.h that PyCUDA is built with, or "pypi"; by default that of the machine's
#                        CUDA, else NVIDIA's packages.

SHELL := /bin/sh
CANDIDATES := python3 python python3.14 python3.13 python3.12 python3.11
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in $(CANDIDATES); do $$name -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
# Set in many containers; the hundreds of processes of a run would each compile all that they import.
export PYTHONDONTWRITEBYTECODE :=
# One worker more than the two cores it is made for: some tests wait for processes.
TESTS := -n 3 --dist worksteal --durations=10
# The compiler stage by stage, the runtime's main paths, one class of each rule on cpu and torch, the tutorial. None of
# these waits for processes. That generated/ is what specs/ make is one of the snapshots.
QUICK_TESTS := -n 2 --dist worksteal --durations=10 -m "not slow and not full"
QUICK := tests/spec tests/ir tests/passes tests/schedule tests/backends tests/emit tests/snapshots \
    $(addprefix tests/runtime/,test_optimizer.py settings/test_groups.py settings/test_settings.py \
    states/test_storage.py step/test_engines.py step/test_changes.py step/test_methods.py \
    checkpoints/test_checkpoints.py checkpoints/test_misfits.py) tests/numerics/test_first.py tests/docs/test_tutorial.py \
    tests/test_layers.py --ignore tests/backends/test_elementary.py

.PHONY: help demo test test-quick test-all lint bench claims converge site clean setup-demo setup-test

help:
	@echo "make demo       train a small transformer with generated optimizers"
	@echo "make test       all checks and tests"
	@echo "make test-quick lint, types, layers; the compiler, the runtime's main paths, a class of each rule, the tutorial"
	@echo "make test-all   the tests with every combination of classes, types and options, and with the oldest and the"
	@echo "                newest torch (long)"
	@echo "make lint       ruff, mypy, the layers"
	@echo "make bench      the optimizers against torch, bitsandbytes and torchao"
	@echo "make claims     what README.md claims, beside what holds here"
	@echo "make converge   every rule in 32, 8 and 4 bits on two small models (long)"
	@echo "make site       the documentation as a site in build/site, with a reference of the API"
	@echo "make clean      remove .venv and caches"

demo: setup-demo
	$(BIN)/optgen build specs/
	$(BIN)/optgen demo

test: lint
	$(BIN)/optgen build specs/ --check
	$(BIN)/python -m pytest $(TESTS)

test-quick: lint
	$(BIN)/python -m pytest $(QUICK_TESTS) $(QUICK)
	@echo "Left out, in make test: of the runtime fused backward, torch.compile, AMP, schedulers, capture, resuming and"
	@echo "imports; building kernels and their cache; the matrix of settings, types and storage; parity with papers and"
	@echo "libraries; codecs, and functions of kernels; the oracles' own tests; the cuda target and its stand-in; several"
	@echo "processes; memory; Trainer, accelerate, Lightning; commands, benchmarks, pages, documentation but for the tutorial,"
	@echo "the wheel."

test-all: test
	$(BIN)/python -m pytest $(TESTS) -m full
	$(BIN)/python tools/torch_versions.py

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_layers.py

bench: setup-test
	$(BIN)/python tools/bench.py

claims: setup-test
	$(BIN)/python tools/claims.py

converge: setup-test
	$(BIN)/python tools/converge.py

site: setup-test
	$(BIN)/python tools/make_site.py

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-demo setup-test: setup-%:
	@if [ -z "$(PYTHON)" ]; then \
	    echo "Python 3.11 or newer is missing: apt install python3 python3-venv, dnf install python3.12," \
	        "or brew install python; or name one: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	fi
	@$(PYTHON) tools/setup_venv.py $*
