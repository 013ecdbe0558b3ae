# make demo: candles to report. make test: lint, types, contracts, tests. TORCH_INDEX=<url> takes torch from a CPU index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A Python that already has torch (a GPU machine's) lends it to the environment; otherwise the pinned one is installed.
HAS_TORCH := $(shell $(PYTHON) -c "import torch; print(tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 11))" 2>/dev/null)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)

.PHONY: demo test soak bench docs examples release clean

demo: $(VENV)/.sample
	$(BIN)/longtape demo --out demo

test: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks examples docs/*.py
	$(BIN)/ruff format --check src tests benchmarks examples docs/*.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" -n 2 --dist worksteal --durations 15

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak

bench: $(VENV)/.dev
	for name in features windows data backtest million attention encoder_step long_sequences; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# The tables that follow from registries, the tests of the pages, the site: build/site/index.html. No network once installed.
docs: $(VENV)/.docs
	$(BIN)/python -m longtape.features.document docs/features.md
	$(BIN)/python -m longtape.workflow.reference docs
	$(BIN)/python docs/tables.py
	$(BIN)/python benchmarks/attention_docs.py
	$(BIN)/python benchmarks/draw_patterns.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs . build/site

# Every example that needs no file of the user's, run whole as a notebook; build/examples holds the notebooks and, of
# each, a page in Markdown with its pictures. EXAMPLES="05_backtest" renders some.
EXAMPLES ?= $(notdir $(basename $(wildcard examples/0*.py))) portfolio informer_many_steps
RENDERED := build/examples
examples: $(addprefix $(RENDERED)/,$(addsuffix .md,$(EXAMPLES)))

.PRECIOUS: $(RENDERED)/%.ipynb
$(RENDERED)/%.ipynb: examples/%.py $(VENV)/.examples
	mkdir -p $(RENDERED)
	$(BIN)/jupytext --quiet --to notebook --output $(RENDERED)/$*.new.ipynb $<
	$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --output $*.ipynb $(RENDERED)/$*.new.ipynb
	rm $(RENDERED)/$*.new.ipynb

$(RENDERED)/%.md: $(RENDERED)/%.ipynb
	$(BIN)/jupyter nbconvert --log-level ERROR --to markdown $<

# The wheel, proved in empty environments: PYTHONS="python3.11 python3.12" names the interpreters.
release:
	PYTHON=$(PYTHON) ./release.sh

clean:
	rm -rf $(VENV) demo build/examples

$(VENV)/.torch:
ifeq ($(HAS_TORCH),True)
	$(PYTHON) -m venv --system-site-packages $(VENV)
else
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(INDEX) "$$(grep '^torch==' constraints.txt)"
endif
	touch $@

# With a torch of the machine's own, the pin on torch and on what comes with it does not hold.
$(VENV)/.constraints: $(VENV)/.torch constraints.txt
ifeq ($(HAS_TORCH),True)
	grep -v -E '^(torch|triton|nvidia-|sympy|networkx|filelock|fsspec|mpmath|jinja2|markupsafe|typing-extensions|setuptools)' constraints.txt > $@
else
	cp constraints.txt $@
endif

$(VENV)/.sample: $(VENV)/.constraints pyproject.toml
	$(PIP) -c $(VENV)/.constraints -e ".[sample]"
	touch $@

$(VENV)/.dev: $(VENV)/.constraints pyproject.toml
	$(PIP) -c $(VENV)/.constraints -e ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) -c $(VENV)/.constraints -e ".[docs]"
	touch $@

$(VENV)/.examples: $(VENV)/.constraints pyproject.toml
	$(PIP) -c $(VENV)/.constraints -e ".[examples]"
	touch $@
