# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SHELL := /bin/bash

.PHONY: help setup native demo test lint test-slow test-cuda bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.ready native  ## the virtual environment and the C++ parts

$(VENV)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

native: $(VENV)/.ready
	@$(PY) bert_ipu/simulator/native/build.py
	@if packages=$$($(PY) bert_ipu/simulator/native/build.py --cmake); then \
		$(VENV)/bin/cmake -S custom_ops -B build/custom_ops --log-level=WARNING \
			-DPOPLAR_DIR=$$packages -DPOPART_DIR=$$packages && \
		$(VENV)/bin/cmake --build build/custom_ops -- --quiet; \
	fi

demo: setup  ## prepare the sample, pretrain to 99%, fine-tune, answer a question
	$(PY) demo.py

test: setup lint  ## everything that is not slow
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

lint: $(VENV)/.ready  ## style, types and formatting
	$(VENV)/bin/ruff check .
	git ls-files "*.cpp" "*.hpp" | xargs $(VENV)/bin/clang-format --dry-run -Werror
	$(VENV)/bin/mypy

test-slow: setup  ## the long checks
	$(PY) -m pytest -m slow --timeout 3600

test-cuda: setup  ## the simulator on a GPU, against plain torch on the CPU
	@$(PY) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("no GPU: torch %s finds none" % torch.__version__)'
	BERT_IPU_SIMULATOR=device=cuda BERT_IPU_TEST_GPU=real $(PY) -m pytest --timeout 1800 \
		tests/simulator/test_runtime_cuda.py tests/simulator/test_equals_torch.py tests/simulator/test_poprun_training.py

bench: setup  ## the simulator's numbers of docs/results.md, in some half an hour on an idle machine
	$(PY) bench/simulator_optimizer.py
	$(PY) bench/simulator_share.py
	$(PY) bench/simulator_fidelity.py
	$(PY) bench/simulator_overhead.py
	$(PY) bench/simulator_speed.py
	$(PY) bench/simulator_compile.py
	@echo "the compilation of every named configuration, five minutes more: $(PY) bench/named_configurations.py"

clean:
	rm -rf build $(VENV)
