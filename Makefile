# make demo    the whole way, from random weights to an aligned model, on this machine's CPU
# make test    every test          make check   the quick ones
# make lint    ruff, mypy, shellcheck    make format  let ruff rewrite what it can
# make test-parity  compare with torch and transformers, in an environment of their own (4 GB)
# make pins    choose new versions of the dependencies (needs uv); then run make test
#
# Each target first sets up a virtual environment, which takes about a minute the first time and
# nothing afterwards. Another Python gets an environment of its own: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv$(patsubst python3.%,-3.%,$(filter python3.%,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
# As many processes as cores, at most four: each needs a few GB.
PARALLEL := -n logical --maxprocesses 4 --dist worksteal
PARITY := .venv-parity

.PHONY: demo test test-parity check lint format pins setup clean-venv

demo: setup
	$(BIN)/python -m alignjax demo

test: setup
	$(BIN)/python -m pytest $(PARALLEL)

test-parity: setup $(PARITY)/done
	ALIGNJAX_PARITY_PYTHON=$(PARITY)/bin/python $(BIN)/python -m pytest tests/parity

$(PARITY)/done: tests/parity/requirements.txt
	$(BIN)/python -m venv --without-pip $(PARITY)
	$(BIN)/python -m pip --python $(PARITY) install -r $<
	touch $@

check: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

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
pins:
	uv lock --upgrade
	@echo "# The versions under which the tests pass, written by 'make pins': do not edit." \
		> requirements.txt
	uv export --frozen --quiet --extra dev --no-emit-project --no-hashes --no-annotate --no-header \
		| sed -E "s/ ; .*python_full_version < '3\.12'.*/ ; python_version < '3.12'/; t; \
			s/ ; .*python_full_version >= '3\.12'.*/ ; python_version >= '3.12'/; t; \
			s/ ; .*//" >> requirements.txt
