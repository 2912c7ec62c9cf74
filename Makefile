# Every target sets up what it needs in .venv; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
MODELS ?= $(RUN) floor:random_init floor:image_stats

.DEFAULT_GOAL := help
.PHONY: help setup demo ingest rebuild pretrain eval reproduce test coverage prove check bench clean
.DELETE_ON_ERROR:

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(VENV)/.ready-dev ## Install everything, tools for tests and checks included, into .venv

demo: $(VENV)/.ready ## Sample scenes → dataset → short pre-training → report, in 3 to 6 minutes on 2 cores
	@echo; echo "== 1/4 sample scenes =="
	@$(BIN)/python -m ingest sample --out $(DEMO)/sample
	@echo; echo "== 2/4 scenes → dataset =="
	@$(BIN)/python -m ingest --scenes $(DEMO)/sample/scenes --out $(DEMO)/dataset --config ingest/configs/demo.yaml
	@$(BIN)/python -m shards verify $(DEMO)/dataset
	@$(BIN)/python -m shards preview $(DEMO)/dataset --out $(DEMO)/dataset.png
	@echo; echo "== 3/4 dataset → backbone =="
	@$(BIN)/python -m pretrain --data $(DEMO)/dataset --run $(DEMO)/run --config pretrain/configs/demo.yaml
	@echo; echo "== 4/4 backbone → report =="
	@$(BIN)/python -m eval --models $(DEMO)/run floor:random_init floor:image_stats --data chips=$(DEMO)/sample/chips --test_share 0.5 --out $(DEMO)/report
	@echo; echo "== done =="
	@echo "scenes    $(DEMO)/sample/scenes   labelled chips  $(DEMO)/sample/chips"
	@echo "dataset   $(DEMO)/dataset         its card        $(DEMO)/dataset/card.html"
	@echo "backbone  $(DEMO)/run/exports     its curves      $(DEMO)/run/curves.html"
	@echo "report    $(DEMO)/report/report.html"
	@echo "next      make ingest SCENES=<your scenes> OUT=<dataset>"

ingest: $(VENV)/.ready ## SCENES=<folder or URL> OUT=<folder or URL> [CONFIG=F] [ARGS=…]: scenes → dataset
	$(call need,SCENES OUT)
	@$(BIN)/python -m ingest --scenes "$(SCENES)" --out "$(OUT)" $(if $(CONFIG),--config "$(CONFIG)") $(ARGS)

rebuild: $(VENV)/.ready ## DATASET=<dataset> [OUT=…] [ARGS=…]: build it again from its own record, and prove the digest equal
	$(call need,DATASET)
	@$(BIN)/python -m ingest --rebuild "$(DATASET)" --out "$(or $(OUT),$(DATASET:/=)-rebuilt)" $(ARGS)

pretrain: $(VENV)/.ready ## DATA=<dataset> RUN=<folder or URL> [CONFIG=F] [ARGS=…]: dataset → backbone
	$(call need,DATA RUN)
	@$(BIN)/python -m pretrain --data "$(DATA)" --run "$(RUN)" $(if $(CONFIG),--config "$(CONFIG)") $(ARGS)

eval: $(VENV)/.ready ## RUN=<run> DATA=name=<class folder> [OUT=…] [MODELS=…] [ARGS=…]: backbone → report
	$(call need,RUN DATA)
	@$(BIN)/python -m eval --models $(MODELS) --data $(DATA) --out "$(or $(OUT),$(RUN)/eval)" $(ARGS)

reproduce: $(VENV)/.ready ## DATA=<class folders> [OUT=…] [PARTS=…] [ROWS=…]: the figures of pretrain/RESULTS.md, in hours
	$(call need,DATA)
	@PYTHON=$(BIN)/python bash pretrain/reproduce/reproduce.sh "$(DATA)" "$(or $(OUT),reproduce)"

test: $(VENV)/.ready-dev ## The whole test-suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: $(VENV)/.ready-dev ## The same, and which lines it runs
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=shards --cov=ingest --cov=pretrain --cov=eval --cov-report=term-missing:skip-covered $(ARGS)

prove: $(VENV)/.ready-dev ## The tests that take minutes: more faults, more kills
	@$(BIN)/python -m pytest -m long $(ARGS)

check: $(VENV)/.ready-dev ## Lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.ready-bench ## All benchmarks; each prints ratios against its yardstick
	@for name in $(filter-out stream_% train_%,$(notdir $(basename $(wildcard tests/bench/*.py)))); do echo "== $$name =="; $(BIN)/python -m tests.bench.$$name || exit 1; done

clean: ## Remove what the demo, tests and checks made (.venv stays)
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

need = $(foreach name,$(1),$(if $($(name)),,$(error $(name) is missing: see `make help`)))

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=<path>"; exit 2; }
	@echo "setting up $(VENV) (once; PyTorch is large)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,s3test]'
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps mosaicml-streaming
	@touch $@
