PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-litert lint docs clean

# one thread: on networks this small a second one costs more than it gives
demo: .venv/installed  ## the main job: teacher in, student on a device out, no data
	rm -rf runs/demo
	OMP_NUM_THREADS=1 $(BIN)/dreamstill demo --out runs/demo

test: .venv/dev lint test-litert  ## the whole test command, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

# LiteRT wants an older typing_extensions than what builds the documentation
test-litert: .venv-litert/installed  ## .tflite files, C arrays and their tutorial, in an environment of its own
	OMP_NUM_THREADS=1 .venv-litert/bin/python -m pytest tests/test_litert.py \
		"tests/test_docs.py::test_python_in_the_pages_runs[microcontroller]"

docs: .venv/dev  ## the documentation, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-litert/installed: pyproject.toml
	$(PYTHON) -m venv .venv-litert
	.venv-litert/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-litert/bin/python -m pip install --quiet --editable '.[litert]' pytest tflite-micro
	touch $@

clean:
	rm -rf .venv .venv-litert runs build
