# Everything here works on a fresh machine with Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat pyproject.toml .ci/requirements.txt .ci/requirements-nodeps.txt | cksum | cut -d' ' -f1)
WORKERS ?= 4

MINUTES ?= 3
SEED ?= 1
ENGINE ?= postgresql

.PHONY: demo test test-slow soak check bench install system lock clean

demo: $(READY)  ## The main job on real local inference, in about a minute; leaves nothing running
	@$(BIN)/python -m tests.demo

test: $(READY) system  ## The fast suite, on SQLite and PostgreSQL
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" tests

test-slow: $(READY) system  ## What takes minutes: long fault runs, others' clients (needs npm), properties with new examples
	$(BIN)/python -m pytest -n $(WORKERS) --hypothesis-profile=explore -m slow tests
	$(BIN)/python -m pytest -n $(WORKERS) --hypothesis-profile=explore -m "not slow" tests/properties tests/fuzz tests/unit

soak: $(READY) system  ## Gateways and their database die for MINUTES under load, on ENGINE; then the money is counted
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED) --engine $(ENGINE)

check: $(READY)  ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) system  ## direct, nginx, LiteLLM and Weir in one interleaved run: ratios and CPU per request
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.reports

install: $(READY)

$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .ci/requirements-nodeps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.ready-*
	@touch $@

# Servers that tests and benchmarks start themselves; only what is missing is installed.
system:
	@missing=; \
	command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing="$$missing nginx-light"; \
	for program in openssl curl; do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	case "$(MAKECMDGOALS)" in *test-slow*) command -v npm >/dev/null || missing="$$missing npm";; esac; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	[ -z "$$missing" ] && exit 0; \
	command -v apt-get >/dev/null || { echo "install these with your package manager:$$missing" >&2; exit 1; }; \
	if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $$missing

lock:  ## Pin every dependency, with hashes, for all platforms and Pythons (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate -o .ci/requirements.txt

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .hypothesis
