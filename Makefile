PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test quality format clean

demo: $(INSTALLED)  ## a classifier steers diffusion models on handwritten digits; pictures and a table in demo/
	$(BIN)/python benchmarks/demo.py --output_dir demo

test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

quality: $(INSTALLED)  ## style and formatting, as they must be before a commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch comes first and pinned: left to itself, pip may fetch gigabytes of CUDA packages for it
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[test,quality]'
	# alone: the torchvision that it asks for does not go with every torch, and what the tests run needs none of it
	$(PIP) --no-deps torch-fidelity
	# as pip would, but on all cores; packages hold files that are not meant to compile
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

clean:
	rm -rf .venv demo build dist *.egg-info
