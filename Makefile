# `make lab` and `make test` do all their own set-up; nothing but Python 3.11+ and make is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LAB_FLAGS ?=
PORT ?= 8000
PYTEST_FLAGS ?= -n auto --dist loadfile -q
NBVAL := $(BIN)/python -m pytest $(PYTEST_FLAGS) --nbval-current-env
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help lab workbook run test test-thorough test-real notebooks playground images site serve tiny tiny-quick tiny-history tiny-int4 lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lab: $(VENV)/.notebooks  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir=. \
	    --LabApp.default_url=/lab/tree/notebooks/00_overview.ipynb $(LAB_FLAGS)

workbook: $(VENV)/.notebooks  ## blank copies of the notebooks to work in; NB=03 starts one again
	$(BIN)/python -m llama3_scratch.exercises.workbook $(NB)

run: $(VENV)/.package  ## the prompt, its tokens, the shapes and the next tokens, without a browser
	@$(BIN)/python -m llama3_scratch

test: $(VENV)/.test  ## run the tests, and the notebooks on three models
	LLAMA3_CHECKPOINT=tiny $(NBVAL) -m "not thorough" --nbval tests notebooks
	LLAMA3_CHECKPOINT=random $(NBVAL) --nbval-lax notebooks
	@$(BIN)/python tests/book/other_sizes.py build/other-sizes
	LLAMA3_CHECKPOINT="$(CURDIR)/build/other-sizes" $(NBVAL) --nbval-lax notebooks

test-thorough: $(VENV)/.test  ## the long tests, which CI runs too: large, spoiled, killed
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m thorough tests

test-real: $(VENV)/.test  ## on Meta-Llama-3-8B, named by LLAMA3_CHECKPOINT: is the next token 42?
	$(BIN)/python -m pytest -v -p no:xdist --durations=0 tests/checkpoint/test_real.py

notebooks: $(VENV)/.notebooks  ## run all notebooks again and store their outputs
	PYTHONPATH=site $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False --ClearMetadataPreprocessor.enabled=True \
	    --ClearMetadataPreprocessor.clear_cell_metadata=False \
	    --ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec \
	    --NotebookExporter.preprocessors=stored.Stored notebooks/*.ipynb

playground: $(VENV)/.package  ## the tiny model as a page for any browser, in build/playground
	@mkdir -p build/playground
	@cp site/playground/* build/playground
	@$(BIN)/python site/weights.py build/playground
	@echo "open $(CURDIR)/build/playground/index.html"

images: $(VENV)/.notebooks  ## draw the pictures again
	$(BIN)/python images/draw.py

site: $(VENV)/.site  ## build the book as a static site, build/site/index.html
	@$(BIN)/python site/build.py build/site

serve: site  ## build the site and show it on http://localhost:8000
	$(BIN)/python -m http.server --bind localhost --directory build/site $(PORT)

tiny: $(VENV)/.notebooks  ## train the tiny model from nothing, as it ships (100 minutes, one core)
	$(BIN)/python -m llama3_scratch.tiny.pretrain --out build/tiny --resume
	$(BIN)/python -m llama3_scratch.tiny.skills --checkpoint build/tiny

tiny-quick: $(VENV)/.notebooks  ## train a lesser one (about ten minutes, two cores)
	$(BIN)/python -m llama3_scratch.tiny.pretrain --out build/tiny-quick \
	    --steps 2200 --rows 4 --threads 2 --resume
	$(BIN)/python -m llama3_scratch.tiny.skills --checkpoint build/tiny-quick

tiny-history: $(VENV)/.notebooks  ## train the lesser one twice; measure it at twelve steps (an hour, one core)
	$(BIN)/python -m llama3_scratch.tiny.history --out build/tiny-history

tiny-int4: $(VENV)/.package  ## quantize the tiny model to 4 bits, as it ships (seconds)
	$(BIN)/python -m llama3_scratch.tiny.int4 --out build/tiny-int4

lint: $(VENV)/.test  ## check style, of the notebooks too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test  ## put all code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# One environment, filled in steps, so that `make run` and `make lab` need not wait for the tests'
# packages. A stamp is newer than what it was made from, so a second run starts at once. A current pip
# first (older ones search for hours where this one does not), then torch, so that no other package
# may pull in another build of it.
$(VENV)/.package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is \
	needed, this is " + sys.version.split()[0] + ": name another one by make PYTHON=python3.12")'
	@echo "Setting up $(VENV) with PyTorch (once; this takes a minute or more)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(VENV)/.notebooks: $(VENV)/.package
	@echo "Adding JupyterLab to $(VENV) (once)"
	@$(PIP) --editable '.[notebooks]'
	@mkdir -p $(LAB_SETTINGS)  # the book opens without a question about news
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}' \
	    > $(LAB_SETTINGS)/overrides.json
	@touch $@

$(VENV)/.test: $(VENV)/.site
	@echo "Adding the tests' packages to $(VENV) (once)"
	@$(PIP) --editable '.[notebooks,site,test]'
	@touch $@

$(VENV)/.site: $(VENV)/.notebooks
	@echo "Adding Sphinx and KaTeX to $(VENV) (once)"
	@$(PIP) --editable '.[notebooks,site]'
	@$(BIN)/python site/katex.py
	@touch $@
