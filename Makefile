# The commands of the project. `make demo` and `make test` set themselves up; see README.md.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements.txt requirements-server.txt requirements-ui.txt
# Options of the demo and of single steps: make demo DATA=reviews.csv, make demo RECIPES="sst2 tnews"
RECIPES ?= sentiment topics stories
DATA ?=
TEXT_COLUMN ?=
LABEL_COLUMN ?=
ARGS ?=
TRAINING_OPTIONS := $(if $(DATA),--data "$(DATA)") $(if $(TEXT_COLUMN),--text-column "$(TEXT_COLUMN)") \
	$(if $(LABEL_COLUMN),--label-column "$(LABEL_COLUMN)")
# One file of a user's own is one task: without a list of recipes it is sentiment.
CHOSEN := $(if $(and $(DATA),$(filter file,$(origin RECIPES))),sentiment,$(RECIPES))

.PHONY: help setup setup-dev demo train serve ui test test-fast test-reliability test-portability proofs check format clean

help:
	@echo "make demo              train the three default recipes, serve them, start the pages"
	@echo "make test              all tests; make test-fast leaves out the slow ones"
	@echo "make test-reliability  the server under floods, slow callers, nonsense and swaps, for minutes"
	@echo "make test-portability  the exports in the TensorFlow of the newest TensorFlow Serving"
	@echo "make proofs            measures the claims about the strategies; writes docs/strategies.md"
	@echo "make check             linter, formatter, types"
	@echo "make train | serve | ui   one step alone; ARGS=... is passed on"
	@echo "make setup             the virtual environment in $(VENV)"

setup: $(VENV)/.runtime
setup-dev: $(VENV)/.dev

$(VENV)/.runtime: $(REQUIREMENTS) scripts/setup.sh
	@sh scripts/setup.sh "$(VENV)" requirements.txt "$(PYTHON)"
	@touch $@

$(VENV)/.dev: $(REQUIREMENTS) requirements-dev.txt scripts/setup.sh
	@sh scripts/setup.sh "$(VENV)" requirements-dev.txt "$(PYTHON)"
	@touch $(VENV)/.runtime $@

demo: setup
	@$(BIN)/python demo.py $(CHOSEN) $(TRAINING_OPTIONS) $(ARGS)

train: setup
	@$(BIN)/python -m training all $(CHOSEN) $(TRAINING_OPTIONS) $(ARGS)

serve: setup
	@$(BIN)/python -m serving $(ARGS)

ui: setup
	@$(BIN)/python -m ui $(ARGS)

test: setup-dev
	@sh scripts/chromium.sh "$(BIN)"
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-fast: setup-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not browser" $(ARGS)

test-reliability: setup-dev
	RELIABILITY=long $(BIN)/python -m pytest -rP tests/reliability $(ARGS)

test-portability: setup-dev
	@sh scripts/portability.sh "$(BIN)"

proofs: setup-dev
	$(BIN)/python tests/training/strategies/every_proof.py

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-portability .pytest_cache .mypy_cache .ruff_cache
