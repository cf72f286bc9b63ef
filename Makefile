# Every target sets up .venv first, once: it is made again when pyproject.toml or constraints.txt
# change. TORCH chooses another build of torch, such as TORCH="torch==2.13.0+cu130 --index-url ...".
SHELL := /bin/bash
PYTHON ?= python3
TORCH ?= torch==2.13.0
CONFIG ?= demo
IMAGES ?=
# make bench: a clone of huawei-noah/Pretrained-IPT, the folder of a model to restore with, and
# photographs to corrupt.
OFFICIAL ?=
WEIGHTS ?=
IMAGENET ?= data/imagenet/train
# make bench-recipe: a folder with imagenet/train, train/Train400 and benchmarks.
DATA ?= data

BIN := .venv/bin
STAMP := .venv/.installed
# Quoted for YAML by the shell, so that any folder's name will do.
export IMAGES
OVERRIDES := $(if $(IMAGES),--set "sources.photos.path='$${IMAGES//\'/\'\'}'" --set 'sources.photos.held_out=[]')

.PHONY: setup demo test test-slow test-slurm chaos check format bench bench-recipe bench-gpu clean

setup: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m launch run configs/$(CONFIG).yaml $(OVERRIDES)

test: $(STAMP)
	$(BIN)/python -m pytest -q -rs

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

test-slurm: $(STAMP)
	$(BIN)/python -m pytest -q -rs -m slurm

# By hand: it depends on the timing of faults. The scripts' figures are committed.
chaos: $(STAMP)
	$(BIN)/python -m pytest -q -m chaos --ignore=tests/test_slurm_faults.py
	$(BIN)/python -m benchmarks.slurm_faults --out benchmarks/slurm_faults.md
	$(BIN)/python -m benchmarks.kill_corrupt --out benchmarks/kill_corrupt.md
	$(BIN)/python -m benchmarks.kill_pretrain --out benchmarks/kill_pretrain.md

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_packaging.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
ifeq ($(OFFICIAL),)
	@echo "no OFFICIAL=checkout of huawei-noah/Pretrained-IPT: not compared with the official code"
else
	$(BIN)/python benchmarks/official.py --official "$(OFFICIAL)"
endif
	$(BIN)/python benchmarks/tilings.py $(if $(WEIGHTS),--weights "$(WEIGHTS)")
	$(BIN)/python -m benchmarks.corrupt --source "$(IMAGENET)"
	$(BIN)/python -m benchmarks.decode_memory
	$(BIN)/python -m benchmarks.loader --source "$(IMAGENET)"
	$(BIN)/python -m benchmarks.training

# About two hours on two cores: DnCNN beside a plain loop, the small IPT, its ablation.
bench-recipe: $(STAMP)
	$(BIN)/python -m benchmarks.dncnn --data "$(DATA)" --out benchmarks/dncnn.md
	$(BIN)/python -m benchmarks.small --data "$(DATA)" --out benchmarks/small.md
	$(BIN)/python -m benchmarks.ablation --data "$(DATA)" --out benchmarks/ablation.md

bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py --out benchmarks/gpu.md $(if $(OFFICIAL),--official "$(OFFICIAL)")

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@# torch first and by itself: left to the resolver, it is the newest CUDA build, several GB.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
