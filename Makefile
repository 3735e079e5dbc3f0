# Each target does its own set-up: a machine with Python 3.11+ and make needs nothing else.
PYTHON ?= python3
RUN := .venv/bin/python
# Third-party scenes for some tests; those that need them say so when they skip.
ifneq ($(wildcard ../shared/realdata),)
export ZOO_REALDATA ?= $(abspath ../shared/realdata)
endif
# All golden cases; the repository holds the small ones.
ifneq ($(wildcard ../shared/golden),)
export ZOO_GOLDEN ?= $(abspath ../shared/golden)
endif

.PHONY: install demo lint test tests test-all test-lowest test-wheel lmms-eval gpu docs clean

install: .venv/installed

.venv/installed: pyproject.toml
	@echo "installing the zoo and what it needs into .venv, which takes some minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install  ## train a model with and one without cameras on rendered rooms, test both, print the scores
	$(RUN) main.py study studies/demo.yaml --output runs/demo

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint tests  ## lint, types, tests

tests: install
	$(RUN) -m pytest -n logical --maxprocesses 4 --dist worksteal

test-all: lint  ## also the slow tests, the README's commands among them: hours
	$(RUN) -m pytest -n logical --maxprocesses 4 --dist worksteal -m "slow or not slow"

test-lowest: .venv-lowest/installed  ## the tests with the lowest versions that pyproject.toml admits
	.venv-lowest/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.venv-lowest/installed: pyproject.toml
	@echo "installing the lowest versions into .venv-lowest, which takes some minutes"
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) -m tests.lowest > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	touch $@

lmms-eval: .venv-lmms/installed  ## an environment with lmms-eval and the zoo

# lmms-eval asks for av<16, with which no mp4 is read here, and filelock 4 breaks it: the second line mends both
.venv-lmms/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lmms
	.venv-lmms/bin/python -m pip install --quiet 'lmms-eval[video-legacy]>=0.7.3,<0.8'
	.venv-lmms/bin/python -m pip install --quiet --editable '.[dev]' 'filelock<4'
	touch $@

gpu:  ## every number that needs a GPU, by the environment of PYTHON as it is; ARGS=--tiny to try it on a CPU
	$(PYTHON) -m benchmarks.gpu $(ARGS)

test-wheel: install  ## build the wheel, install it elsewhere, use it there
	$(RUN) -m pytest -m slow tests/test_wheel.py

docs: .venv/docs-installed  ## the documentation as a site in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

.venv/docs-installed: .venv/installed
	.venv/bin/python -m pip install --quiet --editable '.[dev,docs]'
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-lmms cache runs site
