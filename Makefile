# `make train` and `make test` do everything from a fresh clone; PYTHON picks the interpreter (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint clean

train: .venv/ready
	$(BIN)/python train_IEMOCAP.py --demo

test: .venv/ready-to-test
	$(BIN)/python -m pytest

lint: .venv/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/ready-to-test: .venv/ready requirements-test.txt requirements-predict.txt
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	touch $@

clean:
	rm -rf .venv
