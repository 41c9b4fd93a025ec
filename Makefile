# Every target sets up .venv by itself, once; it is done again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
EXTRAS ?= dev
# Bytecode is left to the first import: most of what is installed is never imported.
PIP := PIP_NO_COMPILE=1 $(BIN)/python -m pip --disable-pip-version-check
# uv installs the tree in a seventh of pip's time; pip takes over where only its own settings name a package index.
INSTALL = sh -c '$(BIN)/uv pip install --quiet --python $(BIN)/python "$$@" || $(PIP) install --quiet "$$@"' sh
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
WORKERS ?= 2

.PHONY: install demo test test-full soak lint bench docs clean
.DEFAULT_GOAL := install

install: $(STAMP)

# DeepSpeed comes as source and imports torch while it builds, so torch goes first and the build is not isolated;
# DS_BUILD_OPS=0 builds none of its kernels, so no compiler is needed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "$(PYTHON) is missing or older than Python 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt uv
	$(PIP) install --quiet -c constraints.txt torch
	$(INSTALL) -c constraints.txt setuptools wheel packaging psutil py-cpuinfo
	DS_BUILD_OPS=0 $(INSTALL) --no-build-isolation -c constraints.txt deepspeed
	$(INSTALL) --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(BIN)/fm demo run=runs/demo

test: $(STAMP)
	$(PYTEST) -m "not full" -n $(WORKERS) --dist loadfile

test-full: $(STAMP)
	$(PYTEST)

# Two hundred random kills of one run.
soak: $(STAMP)
	SOAK_KILLS=200 $(PYTEST) tests/pretrain/test_soak.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(PIP) install --quiet --no-build-isolation -c constraints.txt -e '.[$(EXTRAS),bench]'
	$(PYTEST) tests/benchmarks -s

docs: $(STAMP)
	$(BIN)/python -m fm.config.reference

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
