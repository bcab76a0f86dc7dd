# The two commands of the README are `make demo` and `make test`. Each makes .venv by itself the
# first time (CPU build of torch, pinned in constraints.txt) and needs only Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINE := $(shell find kernels -name '*.cpp' -o -name '*.h') kernels/cpu/build.py

.PHONY: help demo test test-kernels test-others lint typecheck format bench sanitize sanitize-plain compilers clean

help:
	@echo "make demo      find, pack and run a ticket on real images; writes mpt-demo/report.html"
	@echo "make test      lint, type check and the whole test suite"
	@echo "make bench     CPU benchmarks against PyTorch; writes benchmarks/RESULTS.md"
	@echo "make sanitize  the engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer;"
	@echo "               sanitize-plain: its plain-word build alone"
	@echo "make compilers the engine with every installed compiler, warnings as errors"
	@echo "make lint      ruff and mypy only"
	@echo "make clean     remove .venv and everything built"

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mpt_fast needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	@echo "Making $(VENV) and installing mpt_fast with its dependencies (once; a few minutes)..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip setuptools wheel
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.engine

# The C++ engine is rebuilt in place when one of its sources changes.
$(VENV)/.engine: $(VENV)/.installed $(ENGINE)
	@echo "Building the C++ engine..."
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: $(VENV)/.engine
	@$(BIN)/mpt-fast demo

# Two processes that take about as long: the operations and packed networks, and all others with the
# engine's programs.
test: lint
	@echo "Running the tests in two processes, whose output follows when each is done..."
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-kernels test-others

test-kernels:
	@$(BIN)/python -m pytest -q tests/kernels tests/packed --ignore=tests/kernels/cpu

test-others:
	@$(BIN)/python -m pytest -q tests/kernels/cpu $(filter-out %/kernels %/packed %/__pycache__, $(patsubst %/,%,$(wildcard tests/*/))) $(wildcard tests/test_*.py)

lint: $(VENV)/.engine
	@echo "Checking style and types..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory typecheck

# kernels/ is installed as mpt_fast.kernels; mypy sees it there through a folder of links.
typecheck: $(VENV)/.engine
	@rm -rf .typecheck && mkdir -p .typecheck/mpt_fast
	@for entry in $(CURDIR)/mpt_fast/*; do ln -s $$entry .typecheck/mpt_fast/; done
	@ln -s $(CURDIR)/kernels .typecheck/mpt_fast/kernels
	@MYPYPATH=.typecheck $(BIN)/python -m mypy -p mpt_fast

format: $(VENV)/.engine
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(VENV)/.engine
	@$(BIN)/python -m benchmarks.run

# A separate copy of the engine, so that the ordinary one stays fast.
sanitize: $(VENV)/.engine
	@$(BIN)/python -m benchmarks.sanitize

sanitize-plain: $(VENV)/.engine
	@$(BIN)/python -m benchmarks.sanitize --plain

compilers: $(VENV)/.engine
	@$(BIN)/python -m benchmarks.compilers

clean:
	rm -rf $(VENV) build dist *.egg-info .typecheck kernels/*.so
