# The commands people type. Everything lives in .venv, which `make install` makes once.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: install demo test test-fast lint types clean

install: $(VENV)/.installed  ## the package, NeMo and the tools, at the versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=/path/to/python3.11" % v)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[nemo,dev]' -c constraints.txt
	@touch $@

demo: install  ## the whole pipeline on a tiny gpt-oss, on this machine's CPU
	$(BIN)/nemo-run launch recipes/gpt_oss_tiny_lora.py

test: install  ## everything that can run here
	$(BIN)/python -m pytest

test-fast: install  ## what needs no training
	$(BIN)/python -m pytest -m 'not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry .

types: install
	$(BIN)/pyright

clean:  ## runs and caches; .venv stays
	rm -rf runs .pytest_cache .ruff_cache
