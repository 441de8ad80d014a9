# All commands of a contributor. They run in .venv, beside this file, but for matrix and rehearse, which make environments,
# and for gpu, which runs in the PyTorch that is there, and installs nothing.
PYTHON ?= python3
PY := .venv/bin/python
GPU_PYTHON ?= python3
PTXSIM ?= ../shared/tools/ptxsim
OUT ?= bench
GPU_OUT ?= build/gpu
REHEARSAL ?= build/venv211

.PHONY: help demo test matrix draws check site aot sass ptx gpu rehearse bench faults quality walk clean

help:
	@echo "make demo    train a DCGAN on handwritten digits (a few minutes on two CPU cores)"
	@echo "make test    run the tests"
	@echo "make matrix  test three pairs of Python and PyTorch, in environments that are removed (6 GB are fetched for each)"
	@echo "make draws   convert, train and compare 500 modules drawn at random"
	@echo "make check   lint and check types"
	@echo "make site    build the documentation as a site in build/site, and fail on a warning"
	@echo "make aot     compile all GPU kernels, Triton's and csrc/cuda's, and gate the result (AOT=--quick: what CI runs)"
	@echo "make sass    a table of the inner loops of all GEMMs, and whether each is within its limit (half an hour)"
	@echo "make bench   what is fast here, and what made it fast: a quarter of an hour, then tables and plots in OUT=bench"
	@echo "make faults  kill fifty runs and resume them, damage files, and search random shapes of convolutions for faults"
	@echo "make quality score the demo's digits with a classifier (after make demo)"
	@echo "make walk    a stranger's walk: own images, own network, kill, resume, export (examples/stranger.sh; minutes)"
	@echo "make ptx     execute the compiled GPU kernels on the CPU, in a PTX simulator at PTXSIM (PTX=--quick: minutes)"
	@echo "make gpu     all that a GPU can prove and measure, in eight minutes, with GPU_PYTHON; results go to GPU_OUT"
	@echo "make rehearse the same without a GPU, in the oldest PyTorch that it may meet (5 GB are fetched; half an hour)"
	@echo "make clean   remove .venv and caches (runs/ stays)"

demo: .venv/installed
	$(PY) -m fastgan train --preset digits

test: .venv/installed-dev
	$(PY) -m pytest

matrix:
	$(PYTHON) -m proofs.versions $(MATRIX)

draws: .venv/installed-dev
	FASTGAN_DRAWS=500 OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_convert_draws.py

check: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m mypy

# the variable turns off an advertisement
site: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# interpreted kernels cannot be compiled
aot: .venv/installed-dev
	env -u TRITON_INTERPRET $(PY) -m proofs.aot $(AOT)
	$(PY) -m proofs.csrc $(filter --quick --update,$(AOT))

sass: .venv/installed-dev
	env -u TRITON_INTERPRET $(PY) -m proofs.sass --preset dcgan-64 mxnet-dcgan-mnist d2l-dcgan-pokemon \
		--batch 64 128 1024 --precision bf16 fp16 tf32 --arch 80 90 100 $(SASS)

# 12 minutes of measuring; a round, tuning or a compilation that has begun is not cut short
bench: .venv/installed
	$(PY) -m benchmarks --minutes 12 --out "$(OUT)" $(BENCH)
	$(PY) -m benchmarks.report "$(OUT)"

faults: .venv/installed-dev
	$(PY) -m proofs.kills $(FAULTS)
	$(PY) -m proofs.convolutions
	FASTGAN_FUZZ=1000 $(PY) -m pytest tests/test_fuzz.py

quality: .venv/installed
	$(PY) -m fastgan evaluate --metrics score --images 500

walk: .venv/installed-dev
	PYTHON="$(CURDIR)/$(PY)" bash examples/stranger.sh

ptx: .venv/installed-dev
	env -u TRITON_INTERPRET $(PY) -m proofs.ptx --ptxsim "$(PTXSIM)" $(PTX)

gpu:
	PYTHONPATH=. $(GPU_PYTHON) -m proofs.gpu --seconds 480 --out "$(GPU_OUT)" $(GPU)

rehearse:
	test -x "$(REHEARSAL)/bin/python" || sh proofs/gpu/venv.sh "$(REHEARSAL)" $(PYTHON)
	FASTGAN_STAND_IN=proofs.gpu.stand_in PTXSIM="$(PTXSIM)" PYTHONPATH=. \
		"$(REHEARSAL)/bin/python" -m proofs.gpu --seconds 7200 --out build/rehearsal

clean:
	rm -rf .venv build *.egg-info fastgan/_c*.so .pytest_cache .mypy_cache .ruff_cache

# without ensurepip (Debian splits it off into python3-venv) virtualenv makes the same folder
.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; $(PYTHON) -m virtualenv .venv; }

BUILT := .venv/bin/python pyproject.toml setup.py $(shell find csrc -type f)

.venv/installed: $(BUILT)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[all]"
	touch $@

# what it needs itself, too: csrc is compiled once
.venv/installed-dev: $(BUILT)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch .venv/installed $@
