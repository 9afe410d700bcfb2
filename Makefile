# `make help` lists the targets. Everything lives in .venv and _build; nothing outside this folder is touched
# but the user's cache of downloads.

PYTHON  ?= python3
CHAPTER ?=
PORT    ?= 8000
JOBS    ?= 2
URL     ?=

# Threads that wait for each other do not spin: on a busy machine that would take most of the time.
export OMP_WAIT_POLICY ?= PASSIVE

VENV := .venv
BIN  := $(VENV)/bin
READY := $(VENV)/.ready
PAGE := _build/html/index.html

# Chapters run without a hub and without a folder of data: what they show is what any reader gets.
CHAPTER_ENV := env -u LORA_TUTORIAL_DATA HF_HUB_OFFLINE=1
NBVAL := $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=900 --timeout=0 \
         --nbval-sanitize-with tools/sanitize.cfg -p no:cacheprovider
# As many tests and chapters at a time as JOBS says, each on one thread; a file's tests stay together.
SPREAD := env OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1)
WORKERS := -n $(JOBS) --dist loadscope --no-loadscope-reorder
# The chapters that train longest start first, and the short ones fill up the time beside them.
LONGEST := $(foreach name,language_model first_finetune capstone qlora glue,$(wildcard book/*_$(name).ipynb))
CHAPTERS := $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard book/*.ipynb)))
# This one needs weights of 93 MB. Where they cannot be had it is left out, by name; CI may not leave it out.
SMOLLM2 := $(wildcard book/*_language_model.ipynb)
HAS_SMOLLM2 := $(BIN)/python -c 'from lora_tutorial.storage.downloads import fetch; fetch("smollm2")' 2> /dev/null
COVERED := lora_tutorial/lora/*,lora_tutorial/quant/*,lora_tutorial/adapters/*
BUILD := $(BIN)/jupyter-book build . -W -n --keep-going

.DEFAULT_GOAL := help
.PHONY: help setup book serve test check lint format refresh colab repository pdf clean distclean
.DELETE_ON_ERROR:

help:  ## list the targets
	@echo "LoRA from scratch. Usage: make TARGET [PYTHON=python3.12] [CHAPTER=05_lora_linear] [PORT=8000] [JOBS=2]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1)."; \
	  echo "Install one and name it: make book PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu install python3-venv"; rm -rf $(VENV); exit 1; }
	@echo "Installing the pinned packages into $(VENV) (about 500 MB to download the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

setup: $(READY)  ## create .venv with the exact pins, if needed

book: $(READY)  ## set up and build the book into _build/html, warnings as errors
	@$(BUILD) --quiet > /dev/null
	@echo "The book is ready. Open file://$(abspath $(PAGE))"
	@echo "or run: make serve"

pdf: book  ## print the whole book into _build/lora-from-scratch.pdf (needs a Chromium or Chrome)
	@$(BIN)/python tools/pdf.py

serve: $(READY)  ## serve the built book on http://127.0.0.1:8000 (PORT=...)
	@test -f $(PAGE) || { echo "There is no book yet: run make book"; exit 1; }
	@echo "Open http://127.0.0.1:$(PORT) (Ctrl-C stops)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: $(READY)  ## every test: all chapters re-executed, the package, the book's build (JOBS=...)
	@status=0; chapters='$(CHAPTERS)'; \
	$(HAS_SMOLLM2) || test -n "$$CI" || { chapters='$(filter-out $(SMOLLM2),$(CHAPTERS))'; \
	  echo "Skipped: $(SMOLLM2), since SmolLM2's weights cannot be fetched here."; }; \
	$(SPREAD) $(CHAPTER_ENV) $(NBVAL) $(WORKERS) $$chapters || status=1; \
	$(SPREAD) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(WORKERS) --cov --cov-report= tests || status=1; \
	$(BIN)/coverage report --skip-covered; \
	echo "Of lora/, quant/ and adapters/ at least 95 % of the lines are run:"; \
	$(BIN)/coverage report --include='$(COVERED)' --fail-under=95 || status=1; \
	test $$status -eq 0 || echo "make test: something failed; the two summaries above say what"; \
	exit $$status

check: $(READY) lint  ## a contributor's loop: lint, fast tests, one chapter (CHAPTER=...)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests -m "not slow" -q
	@$(CHAPTER_ENV) $(NBVAL) -q book/$(or $(CHAPTER),02_low_rank_math).ipynb

lint: $(READY)  ## ruff on code and notebooks, types, spelling, and the rules every chapter keeps
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/codespell
	@$(BIN)/python tools/rules.py

format: $(READY)  ## let ruff lay out code and notebooks
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

colab: $(READY)  ## run a chapter without the checkout, libraries at their floors: minutes (CHAPTER=...)
	@$(BIN)/python tools/colab.py '$(CHAPTER)'

refresh: $(READY)  ## execute a chapter and store its outputs (CHAPTER=05_lora_linear)
	@$(CHAPTER_ENV) $(BIN)/python tools/refresh.py '$(CHAPTER)'

repository: $(READY)  ## move the book to another address (URL=https://github.com/OWNER/NAME)
	@$(BIN)/python tools/repository.py '$(URL)'

clean:  ## remove what was built
	rm -rf _build build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## remove what was built and .venv
	rm -rf $(VENV)
