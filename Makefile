# Everything a person does with this checkout. `make` alone lists the targets.
# Nothing is written outside the checkout but the usual download caches of uv, npm and go (and, in `make test`
# run as root, the Debian packages listed below).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV   := .venv
BIN    := $(VENV)/bin
CACHE  := .cache
UV     := $(BIN)/uv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
            "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# Extra words for pytest: make test TESTS="tests/unit -k fence"
TESTS ?=

# Two processes for the tests that bear it, each with servers of its own; then, one by one, those that kill, drill or
# measure. `make test SIDE_BY_SIDE=` runs everything in one process.
SIDE_BY_SIDE ?= -n 2

# Debian packages that tests drive as real parts: the broker, second opinions on every PDF, what reads the alerts,
# what the Kubernetes of the tests is built against and calls, what builds images without a daemon.
TEST_PROGRAMS := rabbitmq-server:rabbitmq-server qpdf:qpdf pdftotext:poppler-utils strace:strace npm:npm \
	  promtool:prometheus amtool:prometheus-alertmanager \
	  nft:nftables /usr/include/seccomp.h:libseccomp-dev \
	  buildah:buildah mmdebstrap:mmdebstrap

# Tools look here first; uv reads the certificates that pip was told about.
export PATH := $(CURDIR)/$(BIN):$(PATH):/usr/sbin
export UV_HTTP_TIMEOUT ?= 180
ifneq ($(PIP_CERT),)
export SSL_CERT_FILE ?= $(PIP_CERT)
endif
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

# A checkout that was moved or copied has a venv that points elsewhere: it is made anew.
ifneq ($(wildcard $(VENV)/.made-in),)
ifneq ($(shell cat $(VENV)/.made-in),$(CURDIR))
$(shell rm -rf $(VENV))
endif
endif

.PHONY: help
help: ## List every target
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# ------------------------------------------------------------------------------------------ install and run
.PHONY: setup
setup: $(VENV)/.embedded ## Install what running needs into .venv (no root); leaves .venv/bin/korrigo
	@true

.PHONY: run
run: setup ## Set up and start the whole product on this machine
	@exec $(BIN)/korrigo up

.PHONY: demo
demo: setup ## Take a sample exam from scan to verified final PDF
	@exec $(BIN)/korrigo demo

.PHONY: drill
drill: setup ## Break a scratch instance in every known way and see it noticed and healed (needs prometheus, alertmanager)
	@exec $(BIN)/korrigo drill

# The installer itself comes from a hashed lock too.
$(VENV)/.build: requirements/build.lock
	@test -n "$(PYTHON)" || { echo "Korrigo needs Python 3.11 or newer on PATH" >&2; exit 1; }
	@echo "==> $(VENV) with $$($(PYTHON) --version)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Cannot make a virtual environment: on Debian install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@echo "$(CURDIR)" > $(VENV)/.made-in
	@touch $@

# uv is fast but reads none of pip's own settings (mirrors in pip.conf): where only pip gets through, pip does it.
install = $(UV) pip install --python $(BIN)/python --quiet --require-hashes --compile-bytecode -r $(1) || { \
	  echo "==> uv could not install; trying pip" >&2; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(1); }
editable = $(UV) pip install --python $(BIN)/python --quiet --no-build-isolation --no-deps --editable . && \
	  $(BIN)/python -m compileall -q services protos operator

$(VENV)/.embedded: $(VENV)/.build requirements/embedded.lock pyproject.toml
	@echo "==> installing requirements/embedded.lock"
	@$(call install,requirements/embedded.lock)
	@$(call editable)
	@touch $@

$(VENV)/.dev: $(VENV)/.embedded requirements/dev.lock
	@echo "==> installing requirements/dev.lock"
	@$(call install,requirements/dev.lock)
	@touch $@

# ------------------------------------------------------------------------------------------ tests and checks
.PHONY: test
test: check ## Install what tests need, run every check and every test at its CI size
ifeq ($(SIDE_BY_SIDE),)
	@$(BIN)/python -m pytest $(TESTS)
else
	@$(cluster_ahead); \
	status=0; note() { [ $$1 = 5 ] || status=$$1; }; : '5: none of the tests asked for is of this kind'; \
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not alone" $(TESTS) || note $$?; \
	$(BIN)/python -m pytest -m alone $(TESTS) || note $$?; exit $$status
endif

.PHONY: check
check: test-setup lint types imports drift buf ## Run every check that is not a test

.PHONY: test-setup
test-setup: $(VENV)/.dev programs node_modules/.buf-$(shell sed -n 's|.*"@bufbuild/buf": "\(.*\)".*|\1|p' package.json)
	@true

.PHONY: lint
lint: $(VENV)/.dev ## Lint and check formatting rules (ruff)
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet .

.PHONY: types
types: $(VENV)/.dev ## Check types (mypy, strict)
	@echo "==> mypy"
	@$(BIN)/mypy --no-error-summary

.PHONY: imports
imports: $(VENV)/.dev ## Check the import law (import-linter)
	@echo "==> import law"
	@out=$$($(BIN)/lint-imports --cache-dir $(CACHE)/importlinter --no-logo 2>&1) || { echo "$$out"; exit 1; }

.PHONY: drift
drift: $(VENV)/.dev ## Check that everything generated is up to date
	@echo "==> generated files"
	@$(BIN)/python protos/generate.py --check
	@if [ -f services/embedded/korrigo/reference.py ]; then $(BIN)/python -m korrigo.reference --check; fi
	@$(BIN)/python charts/generate_dashboards.py --check
	@$(BIN)/python -m korrigo_operator.crds --check
	@$(BIN)/python charts/generate_values.py --check

.PHONY: buf
buf: ## Lint the protocol files (buf)
	@if [ -x node_modules/.bin/buf ]; then echo "==> buf lint"; node_modules/.bin/buf lint protos; \
	elif [ -n "$${CI:-}" ]; then echo "buf is missing" >&2; exit 1; \
	else echo "SKIPPED: buf lint (npm is not on PATH)" >&2; fi

.PHONY: buf-breaking
buf-breaking: ## Compare the protocol files with the last release (v1 never breaks)
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null) || { \
	  echo "no release tag yet: nothing to compare with"; exit 0; }; \
	echo "==> buf breaking against $$tag"; \
	node_modules/.bin/buf breaking protos --against ".git#tag=$$tag,subdir=protos"

.PHONY: bench
bench: test-setup ## Measure (figures for the guides)
	@$(BIN)/python -m pytest tests/bench -m bench $(TESTS)

.PHONY: soak
soak: test-setup ## Run the tests at the full figures that the issues name (long)
	@KORRIGO_TEST_SOAK=1 $(BIN)/python -m pytest --timeout=0 -o faulthandler_timeout=0 $(TESTS)

# ------------------------------------------------------------------------------------------ a cluster of one node
cluster = PYTHONPATH=tests:deploy $(BIN)/python -m

# What the cluster's tests need is made while the others run, on what they leave of the machine (cold: many minutes);
# those tests wait for its locks. It ends with the run, and its log stays.
cluster_ahead = if [ -z "$(TESTS)" ] && [ "$$(id -u)" = 0 ]; then mkdir -p $(CACHE); set -m; \
	  GOFLAGS=-p=1 $(cluster) cluster.product_images --behind </dev/null >$(CACHE)/cluster-ahead.log 2>&1 & \
	  ahead=$$!; set +m; trap "kill -- -$$ahead 2>/dev/null || true" EXIT; fi

.PHONY: cluster-bin
cluster-bin: ## Build the Kubernetes of the tests (kubectl, helm too) once; print its folder
	@$(MAKE) $(VENV)/.dev programs >&2
	@$(cluster) cluster.binaries

.PHONY: cluster
cluster: $(VENV)/.dev programs ## Install the product on a real one-node Kubernetes (root), or into KUBECONFIG's
	@$(cluster) cluster.command up

.PHONY: cluster-down
cluster-down: $(VENV)/.dev ## End the cluster: no process, mount or namespace stays
	@$(cluster) cluster.command down

# ------------------------------------------------------------------------------------------ container images
images = PYTHONPATH=deploy $(BIN)/python -m korrigo_images

.PHONY: images
images: $(VENV)/.dev programs ## Build every container image without Docker; prints the archive and the sizes
	@$(images) build

.PHONY: image-context
image-context: $(VENV)/.dev ## Prepare what Docker or podman builds the images from; prints its folder
	@$(images) context

.PHONY: audit-dependencies
audit-dependencies: $(VENV)/.dev ## Ask an advisory service about every distribution of every lock (pip-audit --strict)
	@$(images) audit

# As root the missing programs come from Debian, without starting any service; otherwise their tests are skipped.
.PHONY: programs
programs:
	@missing=""; for p in $(TEST_PROGRAMS); do \
	  command -v "$${p%%:*}" >/dev/null || test -e "$${p%%:*}" || missing="$$missing $${p##*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "SKIPPED: tests that need$$missing (not on PATH; make test as root installs them)" >&2; exit 0; fi; \
	echo "==> apt-get install$$missing"; \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod 755 $$policy; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq; apt-get install -y -qq --no-install-recommends $$missing >/dev/null

node_modules/.buf-%: package.json
	@if command -v npm >/dev/null; then echo "==> npm: buf $*"; rm -f node_modules/.buf-*; \
	  npm install --silent --no-package-lock --ignore-scripts --no-audit --no-fund && touch $@; \
	else echo "SKIPPED: buf (npm is not on PATH)" >&2; fi

# ------------------------------------------------------------------------------------------ generated files
.PHONY: protos
protos: $(VENV)/.dev ## Generate the Python code of the protocol files
	@$(BIN)/python protos/generate.py

.PHONY: reference
reference: $(VENV)/.embedded ## Generate docs/reference from the settings, errors and metrics in the code
	@$(BIN)/python -m korrigo.reference

.PHONY: dashboards
dashboards: $(VENV)/.dev ## Generate the Grafana dashboards of charts/korrigo/files/dashboards
	@$(BIN)/python charts/generate_dashboards.py

.PHONY: crds
crds: $(VENV)/.dev ## Generate the custom resource definitions of charts/korrigo/files/crds from the operator's models
	@$(BIN)/python -m korrigo_operator.crds

.PHONY: chart
chart: $(VENV)/.dev ## Generate the schema and the README of the chart from its values
	@$(BIN)/python charts/generate_values.py

compile_lock = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet \
	  $(if $(UPGRADE),--upgrade)

.PHONY: locks
locks: $(VENV)/.build ## Resolve the locks again (UPGRADE=1 takes new versions)
	@$(compile_lock) --group build -o requirements/build.lock
	@$(compile_lock) pyproject.toml --extra embedded -o requirements/embedded.lock
	@$(compile_lock) pyproject.toml --extra embedded --group dev \
	  -c requirements/embedded.lock -c requirements/build.lock -o requirements/dev.lock
	@for room in ingest grading render audit operator; do \
	  $(compile_lock) pyproject.toml --extra $$room -c requirements/embedded.lock -o requirements/$$room.lock; done

.PHONY: clean
clean: ## Remove what setup and tests made in this checkout
	@rm -rf $(VENV) $(CACHE) node_modules dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
