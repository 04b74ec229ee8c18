# Two commands are all a newcomer needs: `make run` and `make test`. Each makes .venv when needed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: run test dev lint types format generated clean

run: $(READY)          ## distil, quantize, compile, measure and gate real digits
	$(BIN)/kdpipe run examples/digits.yaml

test: $(READY)         ## all tests, on all cores
	$(BIN)/pytest -q -n auto --dist loadfile

dev: $(READY)          ## the environment alone

lint: $(READY)         ## style, unused code, and which folder may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)        ## strict types
	$(BIN)/mypy

format: $(READY)       ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generated: $(READY)    ## what is made of the settings: the table of methods, the JSON schema
	$(BIN)/kdpipe methods --markdown > docs/methods.md
	$(BIN)/python -m kdpipe.pipeline.published > pipeline/schema.json

clean:                 ## remove the environment, caches and stored runs
	rm -rf $(VENV) .typing .kdpipe build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

# .typing links the packages under their installed name, which type checkers cannot see otherwise.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kdpipe needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	mkdir -p .typing/kdpipe
	for folder in pipeline stages targets; do ln -sfn ../../$$folder .typing/kdpipe/$$folder; done
	touch $(READY)
