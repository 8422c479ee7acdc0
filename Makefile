# make demo   haze removed from a photograph
# make test   the whole test suite, in a real napari window
# make docs   the documentation, in site/
# make wheel  the package in dist/, checked for PyPI and the napari hub
# make coverage  the same, and which lines it did not run
# make oldest the tests of the plugin with the oldest napari that it works with
# Each makes its own virtual environment and installs what it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test coverage oldest lint docs wheel system clean

demo: $(VENV)/.engine
	$(BIN)/dehazexl demo demo

# The tests of a file run in one process: they share what is made once for them.
PARALLEL := --numprocesses 2 --dist loadfile

test: $(VENV)/.test system
	$(BIN)/pytest $(PARALLEL) --durations=10 $(PYTEST)

# Tracing makes the tests a sixth slower with Python 3.11; from 3.12 on COVERAGE_CORE=sysmon costs less.
coverage: PYTEST = --cov --cov-report=term:skip-covered
coverage: test

oldest: system
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	  "$$(grep '^torch==' constraints.txt)" napari==0.7.0 --editable ".[test]"
	.venv-oldest/bin/pytest \
	  tests/napari tests/viewing/test_renderer.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/.test
	$(INSTALL) build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/npe2 validate napari-dehazexl --imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.engine: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable ".[test]"
	touch $@ $(VENV)/.engine

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable ".[docs]"
	touch $@

# What a napari window needs on a machine without a screen.
SYSTEM := xvfb xauth libgl1 libegl1 libopengl0 libgl1-mesa-dri libglib2.0-0 libfontconfig1 libdbus-1-3 \
	libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 \
	libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libxcb-xkb1

system:
	@missing=""; \
	if command -v dpkg-query >/dev/null; then \
	  for package in $(SYSTEM); do \
	    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q "install ok installed" || missing="$$missing $$package"; \
	  done; \
	elif ! command -v Xvfb >/dev/null; then missing=" xvfb"; fi; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else \
	  echo "The tests need these system packages:$$missing" >&2; exit 1; \
	fi

clean:
	rm -rf $(VENV) .venv-oldest demo build dist site
