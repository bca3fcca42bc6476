# What a newcomer runs: `make demo` and `make test`. Each makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPES := none mixup cutmix resizemix fmix fmix_mixup randommix

# Installs the package with an extra: by uv where there is one, otherwise by venv and pip.
define install
	@if command -v uv >/dev/null 2>&1; then \
		{ test -d $(VENV) || uv venv -q --python $(PYTHON) $(VENV); } && \
		uv pip install -q --python $(BIN)/python -e '.[$(1)]'; \
	else \
		{ test -d $(VENV) || $(PYTHON) -m venv $(VENV); } && \
		$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[$(1)]'; \
	fi
	@touch $@
endef

.PHONY: help demo test lint slow docs contract bench bench-gpu clean

help:
	@echo "make demo   train a small CNN on digits under seven policies: a table, a plot, pictures (3 minutes)"
	@echo "make test   the test suite (5 minutes)"
	@echo "make slow   the tests that take minutes"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation, in docs/_build"
	@echo "make contract  docs/contract.md anew, from the marks of the tests"
	@echo "make bench  docs/performance.md anew: what mixing costs beside its peers (10 minutes); bench-gpu on a GPU"
	@echo "make clean  remove what these made"

$(VENV)/demo: pyproject.toml
	@echo "Setting up $(VENV) for the demo ..."
	$(call install,demo)

$(VENV)/dev: pyproject.toml
	@echo "Setting up $(VENV) for development ..."
	$(call install,dev)

$(VENV)/bench: pyproject.toml
	@echo "Setting up $(VENV) for the measurements ..."
	$(call install,bench)

demo: $(VENV)/demo
	@WANDB_MODE=offline $(BIN)/lightning-msda compare --config digits/cnn --config log/wandb \
		--policies $(RECIPES) --seeds 0 1 2 --out demo --trainer.logger.save_dir demo

test: $(VENV)/dev
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4

slow: $(VENV)/dev
	@$(BIN)/python -m pytest -q -m slow -n auto --maxprocesses 4

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev
	$(BIN)/python docs/draw.py
	$(BIN)/sphinx-build -q -W -b html docs docs/_build

contract: $(VENV)/dev
	$(BIN)/python -m pytest -q --collect-only --write-contract tests/contract >/dev/null

bench: $(VENV)/bench
	@$(BIN)/python -W ignore docs/bench.py

bench-gpu: $(VENV)/bench
	@$(BIN)/python -W ignore docs/bench.py --gpu

clean:
	rm -rf $(VENV) demo docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
