# Everything a reader of README.md is told to call. Needs python3 (3.11 or newer) and make; the rest it installs itself.
PYTHON ?= python3
VENV := .venv
UV_VERSION := 0.13.8
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Servers start in many processes; without compiled bytecode each of them compiles SGLang anew.
export PYTHONDONTWRITEBYTECODE :=
# What is there of counting beside tests/interpreted.
COUNTING_TESTS := tests/roofline_policies/counting
KINDS := tests/sglang_patches/kinds
# Models and data are local; nothing is fetched at run time.
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test test-servers test-library test-interpreted test-kinds test-fast test-triton lint bench kernels requirements clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@command -v uv >/dev/null || test -x .uv/bin/uv || { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet uv==$(UV_VERSION); }
	PATH="$$PATH:$(CURDIR)/.uv/bin"; \
	uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	uv pip sync --quiet --python $(BIN)/python requirements.txt && \
	uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/python -m bench.demo_model .cache/demo_model
	$(BIN)/python -m bench.live experiment=demo

# Four parts, two side by side, for two cores; what fails in one is no reason not to see the others. Triton's interpreter
# is chosen when Triton is imported, so what it runs has a process of its own.
test: setup
	$(MAKE) --jobs=2 --keep-going --output-sync=line test-servers test-library test-interpreted test-kinds

test-servers: setup
	$(BIN)/python -m pytest --durations=10 tests/bench tests/sglang_patches --ignore=$(KINDS)

test-library: setup
	$(BIN)/python -m pytest --durations=10 tests/layout tests/typing tests/roofline_policies

test-interpreted: setup
	TRITON_INTERPRET=1 $(BIN)/python -m pytest --durations=10 tests/interpreted

# A server for each kind of model.
test-kinds: setup
	$(BIN)/python -m pytest --durations=10 $(KINDS)

test-fast: setup
	$(BIN)/python -m pytest -m "not slow"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m "not slow" tests/interpreted

# Counting under another release of Triton, in an environment of its own: make test-triton TRITON=3.9.0
TRITON ?= 3.9.0
OTHER := .cache/triton-$(TRITON)
test-triton: setup
	PATH="$$PATH:$(CURDIR)/.uv/bin"; \
	mkdir -p .cache && sed "s/^triton==.*/triton==$(TRITON)/" requirements.txt | sort -u > $(OTHER).txt && \
	uv venv --quiet --allow-existing --python $(PYTHON) $(OTHER) && \
	uv pip sync --quiet --python $(OTHER)/bin/python $(OTHER).txt && \
	uv pip install --quiet --python $(OTHER)/bin/python --no-deps --no-build-isolation --editable .
	$(OTHER)/bin/python -m pytest $(COUNTING_TESTS)
	TRITON_INTERPRET=1 $(OTHER)/bin/python -m pytest tests/interpreted

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pytest tests/sglang_patches/bench_loop.py --benchmark-only --benchmark-columns=median,iqr,min,max,rounds -o addopts=""
	$(BIN)/python -m bench.demo_model .cache/demo_model
	$(BIN)/python -m bench.live experiment=demo repeats=3 name=paired

# What counting costs the attention kernels in machine code; compiles for sm_90, no GPU needed.
kernels: setup
	$(BIN)/python -m roofline_policies.counting bench

# Pins for every platform, without a registry's address.
requirements:
	PATH="$$PATH:$(CURDIR)/.uv/bin"; \
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
	    --no-emit-find-links --extra sglang --extra bench --extra dev pyproject.toml --output-file requirements.txt

clean:
	rm -rf $(VENV) .uv .cache build *.egg-info
