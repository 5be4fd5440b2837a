# Each target works on a fresh clone; the environment is created on first use.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$python; break; }; done)
BIN := .venv/bin

.PHONY: quickstart test docs environment clean

environment: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.10 to 3.13 not found; set it: make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: .venv/installed
	$(BIN)/python train.py --config configs/quickstart.yaml
	$(BIN)/python evaluate.py runs/quickstart/best.pt --picture runs/quickstart/detections.png
	@echo 'Loss curves: $(BIN)/tensorboard --logdir runs   (then open the URL that it prints)'

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# Builds the docs in site/; broken links and unlinked pages are errors.
docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python scripts/config_reference.py --check
	$(BIN)/mkdocs build

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
