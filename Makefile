# The commands people type. Everything lives in .venv, which `make install` makes once.
PYTHON ?= python3
VENV   ?= .venv
FOR    ?= 3.12
BIN    := $(VENV)/bin
TWO    := -n 2  # processes; which takes what: tests/conftest.py

.PHONY: install demo test test-foreign test-fast gpu-path-env test-gpu-path serving-env llama-env bridge-env foreign-env site docs \
  lint types lock bundle clean

install: $(VENV)/.installed  ## the package, NeMo and the tools, at the versions of constraints.txt

# LOCKED=1: by the hashes of requirements.lock, on Python 3.11; torch is the machine's own build.
$(VENV)/.installed: pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=/path/to/python3.11" % v)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
ifdef LOCKED
	$(BIN)/python -m pip install --quiet "$$(grep -o '^torch==[0-9.]*' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
else
	$(BIN)/python -m pip install --quiet -e '.[nemo,dev]' -c constraints.txt
endif
	@touch $@

demo: install  ## the whole pipeline on a tiny gpt-oss, on this machine's CPU
	$(BIN)/nemo-run launch recipes/gpt_oss_tiny_lora.py

test: install  ## all that this package does, in its own environment
	$(BIN)/python -m pytest $(TWO) -m 'not foreign'

test-foreign: install  ## what other programs make of it; the targets *-env install them, else their tests skip
	$(BIN)/python -m pytest $(TWO) -m foreign

test-fast: install  ## what needs no training
	$(BIN)/python -m pytest $(TWO) -m 'not slow'

# Transformer Engine's wheels and the libraries that stand in for CUDA's: a few hundred MB, made once.
gpu-path-env: .gpu-path/.installed .gpu-path-newest/.installed  ## what test-gpu-path needs: no GPU, no CUDA, gcc

.gpu-path/.installed: tests/gpu_path/requirements.txt tests/gpu_path/install.sh tests/gpu_path/fake_gpu.c | install
	tests/gpu_path/install.sh $(BIN)/python .gpu-path tests/gpu_path/requirements.txt
	@touch $@

.gpu-path-newest/.installed: tests/gpu_path/requirements-newest.txt tests/gpu_path/install.sh tests/gpu_path/fake_gpu.c | install
	tests/gpu_path/install.sh $(BIN)/python .gpu-path-newest tests/gpu_path/requirements-newest.txt
	@touch $@

# megatron-core 0.19 and Megatron-Bridge, in a folder of their own: NeMo 2 needs megatron-core 0.15.
bridge-env: .megatron-bridge/.installed  ## what tests/converters/test_in_bridge.py needs, with gpu-path-env

.megatron-bridge/.installed: tests/converters/megatron_bridge/requirements.txt | install
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .megatron-bridge --python-version 3.12 \
	  --only-binary=:all: --requirement $<
	@touch $@

test-gpu-path: gpu-path-env  ## the code that runs on a GPU, its kernels emulated
	$(BIN)/python -m pytest tests/gpu_path

# The real vLLM, on a CPU, in an environment of its own: 2 GB, made once, some minutes.
serving-env: .serving/.installed  ## what the tests with the real server need: AVX2, no GPU

.serving/.installed: tests/serving/requirements.txt tests/serving/install.sh | install
	tests/serving/install.sh $(BIN)/python .serving
	@touch $@

# llama.cpp from source, not for CI: a quarter of an hour on two cores; cmake and a C++ compiler.
llama-env: install  ## what tests/serving/test_llama_cpp.py needs
	tests/serving/install_llama.sh $(BIN)/python .llama-cpp

# Other versions than .venv's, laid before it in the path; a file of pins each.
foreign-env: .foreign/transformers5/.installed .foreign/peft017/.installed  ## other transformers and PEFT, for the tests that load in them

.foreign/%/.installed: tests/converters/foreign/%.txt | install
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(@D) --requirement $<
	@touch $@

# mkdocs-material is taken for the site alone; the guides are read as they are.
site: install  ## the guides as web pages in site/
	$(BIN)/python -m pip install --quiet --requirement docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs: install  ## the page of errors anew, the site where it can be had, and every block and the notebook run
	$(BIN)/python docs/error_page.py
	$(MAKE) site || echo "No site: mkdocs-material could not be had. The guides need none."
	$(BIN)/python -m pytest tests/test_docs.py tests/end_to_end/test_guides.py tests/end_to_end/test_tutorial.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry .

types: install
	$(BIN)/pyright

# what the machine decides, torch's build, stays out; versions of the lock stay unless constraints.txt says otherwise
lock: install  ## requirements.lock, after a change of constraints.txt or pyproject.toml
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/uv pip compile pyproject.toml --extra nemo --extra dev --constraint constraints.txt --quiet \
	  --generate-hashes --no-annotate --no-header --no-emit-package torch --no-emit-package transformer-engine \
	  --python-version 3.11.9 --python-platform x86_64-manylinux_2_31 --output-file requirements.lock

bundle: install  ## wheels for a GPU machine without a network: bundle/, for Python 3.12 unless FOR=3.11
	$(BIN)/python containers/bundle.py bundle --python $(FOR)

clean:  ## runs and caches; .venv stays
	rm -rf runs .pytest_cache .ruff_cache
