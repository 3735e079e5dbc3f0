# Each target installs what it needs: a machine with Python 3.11+ and make is enough.
PYTHON ?= python3
RUN := .venv/bin/python
# Third-party scenes for some tests, which say so when they are skipped without them.
ifneq ($(wildcard ../shared/realdata),)
export ZOO_REALDATA ?= $(abspath ../shared/realdata)
endif
# All golden cases; the repository holds the small ones.
ifneq ($(wildcard ../shared/golden),)
export ZOO_GOLDEN ?= $(abspath ../shared/golden)
endif

# The versions that the tests passed with. PINNED=0 installs the newest ones that pyproject.toml admits.
PINNED ?= 1
PINS := $(if $(filter 0,$(PINNED)),,--constraint constraints.txt)

# The next process, and the next run, load what is compiled here.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: install demo lint test tests test-slow test-all test-lowest test-newest pin test-wheel lmms-eval gpu docs clean

install: .venv/installed

.venv/installed: pyproject.toml $(if $(PINS),constraints.txt)
	@echo "installing the zoo and what it needs into .venv, which takes some minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(PINS) --editable '.[dev]'
	touch $@

demo: install  ## train a model with and one without cameras on rendered rooms, test both, print the scores
	$(RUN) main.py study studies/demo.yaml --output runs/demo

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint tests  ## lint, types, tests

tests: install
	$(RUN) $(PYTEST)

test-slow: install  ## the slow tests in an order that the commit chooses; MINUTES=30 skips those not begun by then
	$(RUN) $(PYTEST) -m slow --shuffle "$$(git rev-parse HEAD)" $(addprefix --minutes ,$(MINUTES))

test-all: lint  ## all tests, the slow ones among them: 40 minutes
	$(RUN) $(PYTEST) -m "slow or not slow"

test-lowest: .venv-lowest/installed  ## the tests with the lowest versions that pyproject.toml admits
	.venv-lowest/bin/python $(PYTEST)

.venv-lowest/installed: pyproject.toml
	@echo "installing the lowest versions into .venv-lowest, which takes some minutes"
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) -m tests.lowest > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	touch $@

test-newest: .venv-newest/installed  ## the tests with the newest versions that pyproject.toml admits
	.venv-newest/bin/python $(PYTEST)

.venv-newest/installed: pyproject.toml
	@echo "installing the newest versions into .venv-newest, which takes some minutes"
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable '.[dev,docs]'
	touch $@

pin: test-newest  ## pin the versions that test-newest has just passed with; make clean first for today's newest
	{ grep '^#' constraints.txt; .venv-newest/bin/python -m pip freeze --exclude-editable | sed 's/+.*//'; } > .venv-newest/pins
	mv .venv-newest/pins constraints.txt

lmms-eval: .venv-lmms/installed  ## an environment with lmms-eval and the zoo

# lmms-eval requires av<16, which can't read mp4 here, and breaks with filelock 4: the second line fixes both
.venv-lmms/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lmms
	.venv-lmms/bin/python -m pip install --quiet 'lmms-eval[video-legacy]>=0.7.3,<0.8'
	.venv-lmms/bin/python -m pip install --quiet --editable '.[dev]' 'filelock<4'
	touch $@

gpu:  ## all timings that need a GPU, run by PYTHON without an installation; ARGS=--tiny tries them on a CPU
	$(PYTHON) -m timings.gpu $(ARGS)

test-wheel: install  ## build the wheel, install it elsewhere, use it there
	$(RUN) -m pytest -m slow tests/test_wheel.py

docs: .venv/docs-installed  ## the documentation as a site in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

.venv/docs-installed: .venv/installed
	.venv/bin/python -m pip install --quiet $(PINS) --editable '.[dev,docs]'
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest .venv-lmms cache runs site
