# Every target makes what it needs and leaves it there: a second call is quick.
#
#   PYTHON=python3.12        another interpreter (3.10 or newer)
#   TORCH_INDEX=URL          where pip gets torch. On Linux x86-64 the usual index has a build with
#                            several gigabytes of CUDA; an index with CPU builds saves them.
#   PIP_ARGS="..."           further arguments of every `pip install`
#   PYTEST_ARGS="-k bundle"  further arguments of pytest
#   WORKERS=4                test processes
#   ABLATION_DATA=DIR        images to train the ablations on; ABLATION_ITERATIONS=400 for a quick look,
#                            ABLATION_MINUTES=60 to stop then and go on with the next call,
#                            ABLATION_ARGS="--accelerator cuda" for all else

PYTHON ?= python3
PIP_ARGS ?=
TORCH_INDEX ?=
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
WORKERS ?= 2
ABLATION_DATA ?=
ABLATION_OUT ?= runs/ablations
ABLATION_ITERATIONS ?=
ABLATION_MINUTES ?=
ABLATION_ARGS ?=

FOLDERS := core training export kernels runtime benchmarks
# With the folders themselves, so that a removed file counts as a change.
SOURCES := pyproject.toml setup.py VERSION README.md LICENSE \
	$(shell find $(FOLDERS) -name __pycache__ -prune -o -name '_native.so*' -prune -o \
	-name '_kernels.*' -prune -o -print)

# Python must not find the folders of this tree before the installed package.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo fatbin test check check-sanitize check-aarch64 check-profile bench ablations clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   watch a blurred photo being adapted to and restored (no PyTorch; writes demo/)"
	@echo "make fatbin compile the CUDA kernels for all GPUs (needs nvcc, but no GPU)"
	@echo "make test   install with PyTorch into .venv and run all tests"
	@echo "make check  linters, type checks and the way imports flow"
	@echo "make check-sanitize  the kernels' tests under sanitizers: memory, undefined behaviour, threads;"
	@echo "                     at two levels; EDGEADAPT_LEVELS=baseline,avx512 make check-sanitize: at these"
	@echo "make check-aarch64   the kernels' tests on an emulated 64-bit Arm"
	@echo "make check-profile   what edgeadapt profile measures against other measurements: wants a quiet machine"
	@echo "make bench  measure speed"
	@echo "make ablations ABLATION_DATA=DIR  train and measure every ablation (docs/quality.md)"
	@echo "make clean  remove what the others made"
	@echo "The head of the Makefile lists the variables; PYTHON, TORCH_INDEX and PIP_ARGS are the usual ones."

demo: .venv-demo/installed
	.venv-demo/bin/edgeadapt demo -o demo
	@echo "The pictures are in demo/:" && ls demo

# For `pip install -e .`; without -e, an install compiles them itself. Run in this way, Python does
# not search the folder of the file, where modules have names of its own library.
fatbin:
	$(PYTHON) -c "import runpy; runpy.run_path('kernels/cuda/build.py', run_name='__main__')"

test: .venv/tests-installed
	OMP_NUM_THREADS=1 .venv/bin/pytest -n $(WORKERS) --dist loadfile -p no:benchmark $(PYTEST_ARGS)

check: .venv/checks-installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python tools/view.py
	.venv/bin/mypy
	.venv/bin/pyright -p .view --pythonpath .venv/bin/python
	PYTHONPATH=.view .venv/bin/lint-imports --no-logo

# Not part of `check`: each compiles all kernels once more, and takes minutes.
check-sanitize: .venv/tests-installed
	.venv/bin/python tools/check_kernels.py sanitize $(PYTEST_ARGS)
	.venv/bin/python tools/check_kernels.py threads $(PYTEST_ARGS)

check-aarch64: .venv/tests-installed
	.venv/bin/python tools/check_kernels.py aarch64 $(PYTEST_ARGS)

# Not part of `test`: its bounds are tight, and another program would break them.
check-profile: .venv/tests-installed
	.venv/bin/python tools/check_profile.py

bench: .venv/tests-installed
	.venv/bin/pytest --pyargs edgeadapt.benchmarks -o python_files="bench_*.py" -o python_functions="bench_*" -p no:xdist \
		--benchmark-group-by=func --benchmark-columns=min,median,iqr,rounds $(PYTEST_ARGS)

# Goes on where it was interrupted: rows that are there are not made again.
ablations: .venv/tests-installed
	@test -n "$(ABLATION_DATA)" || { echo "say where the images are: make ablations ABLATION_DATA=DIR"; exit 2; }
	.venv/bin/edgeadapt bench ablations --data "$(ABLATION_DATA)" -o "$(ABLATION_OUT)" \
		$(if $(ABLATION_ITERATIONS),--iterations $(ABLATION_ITERATIONS)) \
		$(if $(ABLATION_MINUTES),--minutes $(ABLATION_MINUTES)) $(ABLATION_ARGS)

clean:
	rm -rf .venv .venv-demo .view build dist demo *.egg-info kernels/_native.so* kernels/cuda/_kernels.*
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks

# The package is installed as a user installs it, not in place: what is tested is what ships. pip
# builds in build/ and would ship a file that was removed since, hence the rm; compiled kernels stay
# in build/temp*, which takes part of what changed only. Without the native engine the install does
# not count: once there is a compiler, the next call makes it.
define install
	rm -rf build/lib* build/bdist*
	$(@D)/bin/pip install -q $(PIP_ARGS) ".[$(1)]"
	@if ls $(@D)/lib*/python*/site-packages/edgeadapt/kernels/_native.so >/dev/null 2>&1; then touch $@; \
	else echo "installed WITHOUT the native engine. It needs a C++ compiler. On Debian: apt-get install g++" >&2; fi
endef

# The demo computes on the CPU: kernels for GPUs would take minutes where there is nvcc.
.venv-demo/installed: export EDGEADAPT_CUDA_ARCHITECTURES := none
.venv-demo/installed: $(SOURCES) | .venv-demo/bin/python
	$(call install,demo)

.venv/tests-installed: $(SOURCES) | .venv/torch-installed
	$(call install,test)

.venv/checks-installed: $(SOURCES) | .venv/torch-installed
	$(call install,dev)

# First and by its full version: what comes later is satisfied with it and looks for no newer one.
.venv/torch-installed: | .venv/bin/python
	.venv/bin/pip install -q $(PIP_ARGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

.venv/bin/python .venv-demo/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "edgeadapt needs Python 3.10 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.11 ..."; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(@D)/..
