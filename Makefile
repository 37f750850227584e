# SPDX-License-Identifier: Apache-2.0
# Every target makes what it needs first: the virtual environment, torch, the tools, the extension.
# TORCH=2.11.0 chooses another torch, PYTHON=... another interpreter; DYNPRUNE_CUDA, TORCH_CUDA_ARCH_LIST and
# MAX_JOBS reach the build.
PYTHON ?= python3
TORCH ?= 2.14.1
# The torchvision of any other torch is left to pip, which takes the one that fits.
TORCHVISION ?= $(if $(filter 2.14.1,$(TORCH)),==0.29.1)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
CPP_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp')

# Stamps carry the settings in their names: other settings, other stamp, new build.
SETTINGS := $(shell echo '$(CFLAGS)|$(CXX)|$(CUDA_HOME)|$(DYNPRUNE_CUDA)|$(TORCH_CUDA_ARCH_LIST)' \
	| cksum | cut -d' ' -f1)
TOOLS := $(VENV)/.tools-torch-$(TORCH)
DOCS_TOOLS := $(VENV)/.docs-tools
DIST_TOOLS := $(VENV)/.dist-tools
BUILT := $(VENV)/.built-torch-$(TORCH)-$(SETTINGS)
MODULE := dynprune_cuda/_C.abi3.so
SOURCES := setup.py pyproject.toml scripts/build_torch.py scripts/cuda_toolkit.py $(wildcard csrc/*/* csrc/*/*/*)
PACKAGE := MANIFEST.in README.md $(shell find dynprune_cuda -name '*.py' -o -name '*.pyi' -o -name py.typed)
CPU_WHEEL := dist/.cpu-wheel

# CI shares the tests out by these; tests/project/test_ci.py checks that no test is lost.
NO_EMULATOR := --ignore=tests/emulator
WITH_RANKS := tests/distributed tests/sharded
PAGES := tests/project/test_docs.py tests/project/test_api_pages.py tests/project/test_readme.py

.DEFAULT_GOAL := help
.PHONY: help venv tools build demo test test-fast test-slow test-distributed test-emulator test-ptx test-ptx-full \
	test-sanitized fuzz wheel dist matrix docs lint format kernels gpu-bundle bench ci clean
ifeq ($(wildcard $(MODULE)),)
.PHONY: $(BUILT)
endif

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(BIN)/python ## Create .venv and install nothing

tools: $(TOOLS) $(DOCS_TOOLS) $(DIST_TOOLS) ## Set up .venv with torch and all tools, and build nothing

build: $(BUILT) ## Set up .venv and build the extension in place

demo: $(BUILT) ## Train on real data with and without choosing, for equally many steps, and compare (under 3 minutes)
	@$(BIN)/python -m benchmarks.equal_steps.demo

test: $(BUILT) ## Run all tests: CPU, emulated CUDA, and CUDA where a GPU is visible
	@$(BIN)/python -m pytest

test-fast: $(BUILT) ## Run the tests that take seconds: no processes, no statistics, no emulator (below 90 s)
	@$(BIN)/python -m pytest -q -m "not slow" $(NO_EMULATOR) --durations=5

test-slow: $(BUILT) ## Run what test-fast leaves out, but for the emulator, the pages, and the folders of test-distributed
	@$(BIN)/python -m pytest -q -m slow $(NO_EMULATOR) $(addprefix --ignore=,$(WITH_RANKS) $(PAGES)) --durations=20

test-distributed: $(BUILT) ## Run the slow tests of several processes
	@$(BIN)/python -m pytest -q -m slow $(WITH_RANKS) --durations=10

test-emulator: $(BUILT) ## Run the CUDA kernels on the CPU, with race and bounds checks
	@$(BIN)/python -m pytest -q tests/emulator --durations=10

# What both targets have in common is compiled once, and run for the last.
test-ptx: $(BUILT) ## Run a part of the CUDA kernels' tests on what nvcc makes of them, on the CPU
	@$(BIN)/python -m pytest -q tests/emulator/ptx --nvcc
	@$(BIN)/python -m pytest -q tests/emulator --ptx=90 --ptx-strength=2 --ptx-least=1
	@$(BIN)/python -m pytest -q tests/emulator/test_scoring_kernels.py tests/emulator/test_row_kernels.py \
		tests/emulator/test_wide_step.py --ptx=80 --ptx-strength=1 --ptx-least=1

test-ptx-full: $(BUILT) ## Run all tests of the CUDA kernels on what nvcc makes of them (slow)
	@$(BIN)/python -m pytest -q tests/emulator/ptx --nvcc
	@$(BIN)/python -m pytest -q tests/emulator --ptx=90 --ptx-least=1
	@$(BIN)/python -m pytest -q tests/emulator --ptx=80 --ptx-least=1

fuzz: $(BUILT) ## Make malformed calls of every public name (CASES=100000 SEED=7 FIRST=0)
	@$(BIN)/python -m tests.fuzz.run --cases $(or $(CASES),10000) --seed $(or $(SEED),0) --first $(or $(FIRST),0)

test-sanitized: $(TOOLS) ## Build the CPU operators with ASan and with UBSan; fuzz and test them (by hand: minutes)
	@$(BIN)/python scripts/sanitized.py

docs: $(BUILT) $(DOCS_TOOLS) ## Build the documentation site into build/docs, with warnings as errors, and run its code
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@$(BIN)/python -m pytest -q $(PAGES)
	@echo "the site is build/docs/index.html"

wheel: $(CPU_WHEEL) ## Build the sdist and from it the wheel for the CPU, and check both

dist: $(DIST_TOOLS) ## Build the sdist and both wheels, check them, try them in empty environments (SMOKE="2.11/3.10": in these)
	@$(BIN)/python scripts/dist.py cpu cuda --smoke $(SMOKE)

matrix: $(CPU_WHEEL) ## Test the wheel for the CPU with every torch and Python (CELLS="2.11 2.14/3.13": with these)
	@$(BIN)/python scripts/matrix.py dist/*+cpu-*.whl $(if $(CELLS),--cells $(CELLS))

lint: $(TOOLS) ## Check style, types, language and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@echo "clang-format --dry-run on $(words $(CPP_FILES)) C++ files"
	@$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	@$(BIN)/python scripts/check_language.py
	@$(BIN)/python -m pytest -q --noconftest tests/project/test_layering.py

format: $(TOOLS) ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format
	@$(BIN)/clang-format -i $(CPP_FILES)

kernels: | $(BIN)/python ## Compile every kernel with nvcc (no GPU), report registers, spills and the cost of hot loops (ARCHS="80 90": not for all)
	@$(BIN)/python scripts/kernel_resources.py $(if $(JOBS),--jobs $(JOBS)) $(addprefix --arch ,$(ARCHS))

gpu-bundle: $(TOOLS) ## Make build/gpu_bundle for a machine with an H100 or H200 (BASE=COMMIT: to compare with)
	@$(BIN)/python scripts/gpu/make_bundle.py $(if $(BASE),--base $(BASE))

bench: $(BUILT) ## Run the microbenchmarks
	@set -e; for benchmark in loading.bench_samplers scoring.bench_scoring selection.bench_selection; do \
		$(BIN)/python -m benchmarks.$$benchmark; \
	done

ci: ## Run CI's jobs, two at a time (ONLY="lint docs": these)
	@.ci/run $(ONLY)

clean: ## Remove what was built; .venv stays
	rm -rf build dist *.egg-info $(MODULE) $(VENV)/.built-* .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@echo "creating $(VENV) with $(PYTHON)"
	@sh scripts/make_venv.sh $(PYTHON) $(VENV)

$(TOOLS): pyproject.toml scripts/requirements.py | $(BIN)/python
	@echo "installing torch $(TORCH) (the CUDA build is some GB and takes minutes; nothing is done if it is there)"
	@$(PIP) torch==$(TORCH) 'torchvision$(TORCHVISION)'
	@echo "installing the tools of the extras demo, test, streams and dev"
	@$(BIN)/python scripts/requirements.py demo test streams dev > $(VENV)/requirements.txt
	@$(PIP) torch==$(TORCH) -r $(VENV)/requirements.txt
	@rm -f $(VENV)/.tools-* && touch $@

$(DOCS_TOOLS): pyproject.toml scripts/requirements.py | $(TOOLS)
	@echo "installing the tools of the extra docs"
	@$(BIN)/python scripts/requirements.py docs > $(VENV)/requirements-docs.txt
	@$(PIP) -r $(VENV)/requirements-docs.txt
	@touch $@

$(DIST_TOOLS): pyproject.toml scripts/requirements.py | $(TOOLS)
	@echo "installing the tools of the extra dist"
	@$(BIN)/python scripts/requirements.py dist > $(VENV)/requirements-dist.txt
	@$(PIP) -r $(VENV)/requirements-dist.txt
	@touch $@

$(CPU_WHEEL): $(DIST_TOOLS) $(SOURCES) $(PACKAGE) scripts/dist.py
	@$(BIN)/python scripts/dist.py cpu
	@touch $@

$(BUILT): $(TOOLS) $(SOURCES)
	@echo "building dynprune_cuda, which takes minutes with CUDA (log: build/install.log)"
	@mkdir -p build
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -v --no-build-isolation --no-deps --editable . \
		> build/install.log 2>&1 || { cat build/install.log; exit 1; }
	@sed -n 's/^ *dynprune_cuda: //p' build/install.log | sort -u
	@$(BIN)/python -c "from dynprune_cuda import build_info; print(build_info())"
	@rm -f $(VENV)/.built-* && touch $@
