# Shortcuts for pip, pytest and the command line. `make demo` and `make test` set up .venv first.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.excise-installed

.PHONY: setup demo docs test test-all mutants matrix check artwork clean

setup: $(STAMP)

$(STAMP): pyproject.toml reference/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e reference -e '.[dev]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	touch $@

demo: $(STAMP)
	$(BIN)/excise demo --out demo

# Builds the documentation site in build/site; fails on a broken link or a public name without a docstring.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[docs]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/build_docs.py

# One process for each core. test-all uses one process, because slow tests need all of the memory.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)
	$(BIN)/python -m pytest -m ""

# Breaks important lines one at a time; their tests must notice (tests/mutants/README.md). Part of test-all.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants $(MUTANTS)

# Runs the tests of attaching with several versions of transformers and diffusers, in separate environments (noxfile.py).
matrix: $(STAMP)
	$(BIN)/nox $(NOXFLAGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_words.py

# Draws the committed sprites again (needs node and npm).
ARTWORK_PACKAGES := @resvg/resvg-js@2.6.2 $(addprefix @iconify-json/,noto@1.2.9 twemoji@1.2.5 openmoji@1.2.29 \
	fluent-emoji@1.2.7 emojione@1.2.3 emojione-v1@1.2.3 noto-v1@1.2.5 fluent-emoji-high-contrast@1.2.6) emojilib@4.0.3
artwork:
	npm install --no-save --prefix build/artwork $(ARTWORK_PACKAGES)
	node scripts/make_artwork.mjs build/artwork/node_modules reference/src/excise_reference/artwork
	node scripts/make_emoji_words.mjs build/artwork/node_modules reference/src/excise_reference/emoji_words.txt

clean:
	rm -rf demo build dist dist-reference reference/dist .nox .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
