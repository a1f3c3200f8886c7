# The two commands of the README are `make demo` and `make test`; both build .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built-from-pyproject

.PHONY: help demo test test-hard test-lowest check bench experiments sample plugin qgis-newest qgis-screenshots clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# One environment per checkout, rebuilt only when pyproject.toml or constraints.txt changes. uv, where pip can
# fetch it, installs the same packages in a fraction of the time.
$(STAMP): pyproject.toml constraints.txt
	@echo "building $(VENV) (PyTorch is large: one to several minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	@if [ -x $(BIN)/uv ]; then \
	  VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[dev]'; \
	else $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'; fi
	@touch $(STAMP)

demo: $(STAMP)  ## train on the sample raster, predict held-out chips, write layers, maps and a report
	@$(BIN)/python sample_data/demo.py demo_output

# One thread for each of two processes on two cores; what Python compiles is kept, for the next run and for the
# interpreters that tests start, also where the environment says otherwise.
test: $(STAMP)  ## the default tests (under 5 minutes on 2 cores)
	@env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not hard"

test-hard: $(STAMP)  ## the long and violent tests: kills, floods, damage (5 to 10 minutes)
	@$(BIN)/python -m pytest -q -n 2 -m hard -p no:randomly --timeout 1500

# The lowest versions that pyproject.toml allows, for the oldest Python; they warn of what is long changed, which ends
# no test here. Models and training, where only PyTorch matters, are left to the newer versions of `make test`.
LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/.built-from-pyproject
LOWEST_TESTS := tests/files tests/inputs tests/maps tests/test_cli*.py tests/test_distributed.py tests/test_p*.py \
  tests/test_report.py
$(LOWEST_STAMP): pyproject.toml $(STAMP)
	@echo "building $(LOWEST)"
	@rm -rf $(LOWEST)
	@$(BIN)/uv venv --quiet --python 3.11 $(LOWEST)
	@VIRTUAL_ENV=$(CURDIR)/$(LOWEST) $(BIN)/uv pip install --quiet --compile-bytecode --resolution lowest-direct --editable '.[test]'
	@touch $(LOWEST_STAMP)

test-lowest: $(LOWEST_STAMP)  ## files, maps, predictions and commands with the lowest versions (under 4 minutes on 2 cores)
	@env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n 2 -m "not hard" \
	  -o filterwarnings= -o cache_dir=$(LOWEST)/.pytest_cache $(LOWEST_TESTS)

check: $(STAMP)  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)  ## measure; figures go to benchmarks/results (about two hours on 2 idle cores)
	@$(BIN)/python benchmarks/kernels.py
	@$(BIN)/python benchmarks/loss.py
	@$(BIN)/python benchmarks/huge_head.py
	@$(BIN)/python benchmarks/density.py
	@$(BIN)/python benchmarks/estimates.py
	@$(BIN)/python benchmarks/crowds.py
	@$(BIN)/python benchmarks/album.py
	@$(BIN)/python benchmarks/predict_memory.py
	@$(BIN)/python benchmarks/predict_cost.py
	@$(BIN)/python benchmarks/predict_scale.py
	@$(BIN)/python benchmarks/throughput.py
	@$(BIN)/python benchmarks/reading.py
	@$(BIN)/python benchmarks/intervals.py

# DATA is the folder that docs/experiments/README.md describes; what OUT holds already is used again.
SCALE ?= small
OUT ?= experiments_output
experiments: $(STAMP)  ## run the paper's experiments: make experiments DATA=folder [SCALE=small|full] [OUT=folder]
	@test -n "$(DATA)" || { echo "give the imagery: make experiments DATA=folder; see docs/experiments/README.md"; exit 2; }
	@$(BIN)/python experiments/check_data.py "$(DATA)"
	@$(BIN)/python experiments/fig2.py
	@$(BIN)/python experiments/theory.py --scale $(SCALE)
	@$(BIN)/python experiments/fig3.py --data "$(DATA)" --out "$(OUT)" --scale $(SCALE)
	@$(BIN)/python experiments/fig4.py --data "$(DATA)" --out "$(OUT)" --scale $(SCALE)
	@$(BIN)/python experiments/fig5.py --data "$(DATA)" --out "$(OUT)" --scale $(SCALE)
	@$(BIN)/python experiments/fig6.py --data "$(DATA)" --out "$(OUT)" --scale $(SCALE)
	@$(BIN)/python experiments/table1.py --data "$(DATA)" --out "$(OUT)" --scale $(SCALE)

sample: $(STAMP)  ## regenerate sample_data/ from Natural Earth
	@$(BIN)/python sample_data/make_sample_data.py

plugin:  ## write the QGIS plugin's zip file into dist/
	@$(PYTHON) qgis_plugin/package.py

qgis-newest: $(STAMP)  ## run the plugin in the newest QGIS of Debian (as root; network; 2 GB in /tmp)
	@qgis_plugin/newest_qgis.sh

qgis-screenshots: $(STAMP)  ## take the pictures of docs/qgis.md anew (needs QGIS and xvfb)
	@$(PYTHON) qgis_plugin/screenshots.py

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) $(LOWEST) demo_output .pytest_cache .mypy_cache .ruff_cache
