# Two commands for a fresh machine: `make demo` and `make test`.
#
#   PYTHON   the Python to make the environment with; with ROS sourced, that of the ROS installation
#   ARGS     further arguments, e.g. make demo ARGS="--backend float --frames 300"
#   JOBS     processes that test at a time; 0 tests in pytest's own, for a debugger
#   DISTRO   the ROS 2 distribution whose wheels are taken: kilted (default) or jazzy
#
# A sourced ROS 2 installation is used. It and every distribution but the default get environments of their own.

PYTHON ?= python3
DISTRO ?= $(or $(ROS_DISTRO),kilted)
VENV ?= .venv$(addprefix -,$(or $(ROS_DISTRO),$(filter-out kilted,$(DISTRO))))
ARGS ?=
JOBS ?= 2
MINUTES ?= 60
RUN = $(VENV)/bin/python
# A file's tests stay together: what they share, a node or a compiled kernel, is made once.
TEST = $(RUN) -m pytest -n $(JOBS) --dist loadfile
STAMP = $(VENV)/.made-by-make
INPUTS = setup.py setup.cfg package.xml pyproject.toml scripts/make_venv.py scripts/build_messages.py $(wildcard msgs/*/*.* msgs/*/msg/*.msg)

.PHONY: demo test test-ros test-train test-oldest fuzz mutants soak train-demo teach-demo gpu-check lint clean

demo: $(STAMP)
	$(RUN) -m bnn_perception demo $(ARGS)

test: $(STAMP)
	$(TEST) $(ARGS)

# Those that what is installed of ROS can fail: run them with each DISTRO.
test-ros: $(STAMP)
	$(TEST) test/ros $(shell grep -lE 'bnn_perception\.ros|rclpy' test/unit/*.py test/fuzz/*.py) $(ARGS)

# The tests of training need PyTorch, whose default wheel is some gigabytes on Linux.
test-train: $(VENV)/.made-for-training
	$(TEST) $(ARGS)

# Damaged messages, model folders and nets of other tools, 135,000 of them, and nodes that are told to end at 60 moments of
# their start; `make test` takes a share. Minutes.
fuzz: $(STAMP)
	FUZZ=1 $(RUN) -m pytest test/fuzz test/ros/test_early_end.py $(ARGS)

# The tests without ROS on the oldest packages that setup.py takes and that have wheels for this Python.
test-oldest:
	$(PYTHON) scripts/make_oldest.py .venv-oldest
	.venv-oldest/bin/python -m pytest test/unit $(ARGS)

# How many small faults, put into a copy of the package one at a time, the tests notice; takes hours with all modules.
mutants: $(STAMP)
	$(RUN) test/mutants/run.py $(ARGS)

# The node for so long under damaged frames, storms of parameters and cameras that come and go; writes docs/reliability.md.
soak: $(STAMP)
	$(RUN) -m benchmark.soak --minutes $(MINUTES) --out docs/reliability.md

# Trains float twin and binary net on scikit-learn's handwritten digits, and evaluates what came out.
train-demo: $(VENV)/.made-for-training
	$(RUN) -m bnn_perception.training.digits runs/digits/data
	$(RUN) -m bnn_perception train config/train/digits.yaml --data runs/digits/data --run runs/digits --out runs/digits/model
	$(RUN) -m bnn_perception evaluate runs/digits/data/test --model runs/digits/model

# From a live camera to new labels on the running node, on a rendered drive: collect, train, switch, compare. Minutes.
teach-demo: $(VENV)/.made-for-training
	rm -rf runs/teach
	$(RUN) -m bnn_perception.cli.teach_demo runs/teach $(ARGS)

# Tests and benchmark on an NVIDIA GPU, into benchmark/results. No environment is made: PYTHON has CuPy for the GPU's
# driver (and ONNX Runtime, and PyTorch where it is to be compared with); benchmark/results/README.md says what it needs.
gpu-check:
	$(PYTHON) -m benchmark.gpu.benchmark --tests test/gpu $(ARGS)

lint: $(STAMP)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

$(STAMP): $(INPUTS)
	$(PYTHON) scripts/make_venv.py $(VENV) $(DISTRO) test lint
	$(RUN) -m bnn_perception compile
	@touch $@

$(VENV)/.made-for-training: $(STAMP)
	$(RUN) -m pip install --quiet --editable '.[train]'
	@touch $@

clean:
	rm -rf .venv .venv-* build install log
