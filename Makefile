# Requires Python 3.11 or newer and make; `make PYTHON=python3.12 demo` picks another Python.
PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
INSTALL := $(VENV)/bin/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt
TEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest
BENCH := masks,logmel loader optimizer,kernels pretrain,finetune infer embed librosa,precision

.DEFAULT_GOAL := help
.PHONY: help demo test slow docs wheel small compare cost bench lint ruff clean

help:  ## this list
	@sed -n 's/^\([a-z0-9_]*\):.*## /\1\t/p' Makefile | while read -r name what; do printf 'make %-13s %s\n' "$$name" "$$what"; done

demo: $(VENV)/eat.stamp  ## pre-train, probe, fine-tune and predict on synthetic audio, on the CPU
	@$(VENV)/bin/eat demo --out runs/demo

test: $(VENV)/dev.stamp ruff  ## ruff, mypy and the quick tests
	@echo "mypy beside pytest, $(WORKERS) workers"
	@mkdir -p .mypy_cache; $(VENV)/bin/mypy >.mypy_cache/log 2>&1 & mypy=$$!; \
	$(TEST) -n $(WORKERS) --dist loadfile $(ARGS); code=$$?; \
	wait $$mypy || { cat .mypy_cache/log; exit 1; }; exit $$code

slow: $(VENV)/dev.stamp  ## the tests that take longer
	@$(TEST) -m slow $(ARGS)

docs: $(VENV)/docs.stamp  ## the documentation as a site in docs/_build/html; warnings are errors
	@$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(VENV)/dev.stamp  ## the wheel and the sdist, in dist/
	@$(VENV)/bin/python -m build --outdir dist

small: $(VENV)/dev.stamp  ## pre-train tiny models, probe and fine-tune them on the corpora in EAT_DATA; core-hours
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.small $(ARGS)

cost: $(VENV)/eat.stamp  ## count what pre-training on AudioSet-2M takes, method by method; nothing is trained
	@$(VENV)/bin/python -m benchmarks.cost
	@$(VENV)/bin/python -m benchmarks.methods

bench: $(VENV)/dev.stamp  ## speed beside a plain implementation; about half an hour of one core
	@for what in $(BENCH); do \
	  OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.speed $$(echo $$what | tr , ' ') --json benchmarks/results/bench_cpu_$${what%%,*}.json || exit; done
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.speed scaling --size small --json benchmarks/results/bench_cpu_scaling.json
	@$(VENV)/bin/python -m benchmarks.tables
	@$(VENV)/bin/python -m benchmarks.embedding_cost

compare: $(VENV)/dev.stamp  ## EAT, Audio-MAE and BEATs at the same CPU time, on ESC-10
	@$(VENV)/bin/python -m benchmarks.compare_methods.presets $(ARGS)

lint: ruff  ## ruff and mypy only
	@$(VENV)/bin/mypy

ruff: $(VENV)/dev.stamp
	@echo "ruff check, ruff format --check"
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --check . || { echo "run $(VENV)/bin/ruff format ."; exit 1; }

clean:  ## remove the virtual environment and the caches, keep runs/
	@rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps say that an installation is complete; a change of what to install makes them stale.
$(VENV)/eat.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing torch (the largest part, a minute or more)"
	@$(INSTALL) torch
	@echo "installing eat-audio and what it needs"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/eat.stamp
	@echo "installing what the tests need"
	@$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/eat.stamp
	@echo "installing what the documentation needs"
	@$(INSTALL) -e '.[docs]'
	@touch $@
