# Each target works alone on a fresh clone: it makes .venv first, with what constraints.txt names.
# PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
HOT_PATH := collector/setup.py $(addprefix collector/src/auditspan_collector/,\
	transcode.py transcode.pxd sealing.py sealing.pxd columnar.py columnar.pxd pairs.py pairs.pxd native.h) \
	instrumentation/setup.py instrumentation/src/auditspan/_packing.c instrumentation/src/auditspan/_gate.c

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-faults test-faults-services test-languages test-frameworks bench lint fuzz asan format proto clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*## "} {printf "  make %-8s %s\n", $$1, $$2}'

setup: $(COMPILED) ## Create .venv with the three packages and everything for development

$(STAMP): constraints.txt pyproject.toml proto/pyproject.toml instrumentation/pyproject.toml collector/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Auditspan needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 ..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "==> Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	@echo "==> Installing Auditspan, ClickHouse's embedded engine (about 500 MB) and the development tools; a minute or two"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable proto --editable instrumentation --editable 'collector[embedded]' --group dev
	@touch $@ $(COMPILED)
	@echo "==> Ready"

# The installation compiles the hot path; this does it again when only that has changed.
$(COMPILED): $(STAMP) $(HOT_PATH)
	@echo "==> Compiling the hot path"
	@cd collector && ../$(BIN)/python setup.py --quiet build_ext --inplace
	@cd instrumentation && ../$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: $(COMPILED) ## Run the whole line on this machine: a small shop, its audit trail, and questions to it (KEEP=1 leaves it running)
	@KEEP=$(KEEP) $(BIN)/python examples/shop/demo.py

test: $(COMPILED) ## Run all tests
	@echo "==> Running the tests, a file at a time on each core; some ten minutes on two cores"
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-long: $(COMPILED) ## Run what make test leaves out for its time, but for the faults
	@echo "==> Running the longer forms; some five minutes on two cores"
	@$(BIN)/python -m pytest -m long --ignore tests/faults --numprocesses auto

test-faults: $(COMPILED) ## Break the collector, its disk and its ClickHouse, and write what came of it to docs/faults.md
	@echo "==> Breaking things; some nine minutes on two busy cores"
	@AUDITSPAN_FAULTS_REPORT=docs $(BIN)/python -m pytest tests/faults -m "long or not long" --numprocesses 2 \
		--ignore tests/faults/test_faults_of_services.py

test-faults-services: $(COMPILED) ## End services in every way, and write what came of it to docs/faults-of-services.md
	@echo "==> Ending services; some ten minutes on two cores"
	@AUDITSPAN_FAULTS_REPORT=docs $(BIN)/python -m pytest tests/faults/test_faults_of_services.py -m long --numprocesses 2

test-languages: $(COMPILED) ## Run services in Node, Go and Java with their stock SDKs against the collector; demands their toolchains
	@echo "==> Building and running a service in each language; the first build downloads and compiles SDKs, minutes"
	@AUDITSPAN_LANGUAGES="node go java" $(BIN)/python -m pytest tests/languages

test-frameworks: $(COMPILED) ## Ask the frameworks' tests of older versions, each in an environment of its own (QUICK=1: together in one; ROWS="flask-2.3")
	@echo "==> Environments in build/frameworks, made once; some ten minutes on two cores, QUICK=1 three"
	@$(BIN)/python tests/instrumentation/frameworks/other_versions.py $(if $(filter 1,$(QUICK)),--quick) $(ROWS)

bench: $(COMPILED) ## Measure services, collector and store beside their peers, twenty minutes (QUICK=1: five; PEERS=0: without installing peers)
	@$(BIN)/python -m bench --keep $(if $(filter 1,$(QUICK)),--quick) $(if $(filter 0,$(PEERS)),,--peers) $(SUITES)

lint: $(COMPILED) ## Check format, lint rules, types and the direction of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

SECONDS ?= 600
fuzz: $(COMPILED) ## Compare the compiled walk with the readable path on requests changed at random (SECONDS=600)
	@$(BIN)/python tests/fuzz/differential.py --seconds $(SECONDS)

# A sanitized build of its own in .asan; Python itself is not sanitized, so the library is loaded first, and its
# small allocations go through malloc, where the sanitizer sees their bounds.
ASAN := LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	PYTHONPATH=.asan
asan: $(STAMP) ## Run the tests and a short fuzz of what is compiled under AddressSanitizer (SECONDS=600)
	@rm -rf .asan
	@cd collector && AUDITSPAN_REQUIRE_COMPILED=1 AUDITSPAN_SANITIZE=1 ../$(BIN)/python setup.py --quiet \
		build --build-base ../.asan/build --build-lib ../.asan
	@cd instrumentation && AUDITSPAN_REQUIRE_COMPILED=1 AUDITSPAN_SANITIZE=1 ../$(BIN)/python setup.py --quiet \
		build --build-base ../.asan/build-light --build-lib ../.asan
	@$(ASAN) $(BIN)/python -m pytest -q tests/instrumentation/core/test_core_packing.py tests/instrumentation/core/test_core_gate.py -k "not build and not compile"
	@$(ASAN) $(BIN)/python -m pytest -q tests/collector/codec/test_both_paths_agree.py tests/collector/codec/test_sealing.py tests/collector/codec/test_columnar.py tests/collector/codec/test_pairs.py \
		-k "not the_engine" # which a sanitized process can not load
	@$(ASAN) $(BIN)/python tests/fuzz/differential.py --seconds $(SECONDS)

format: $(STAMP) ## Format the code and apply safe fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: $(STAMP) ## Generate proto/src from the .proto files
	@$(BIN)/python proto/generate.py

clean: ## Remove .venv and caches
	@rm -rf $(VENV) .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis .demo
