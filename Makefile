# `make demo` and `make test` each make the environment from the committed lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 5000

.PHONY: help env demo ui team-env team-server test test-all test-team test-cluster fuzz reproduce fair bench gpu lint docs-env docs docs-serve figures lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.made: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "flr needs Python 3.11 to 3.13: make PYTHON=python3.12"'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

env: $(VENV)/.made ## the environment, from the committed lock

demo: env ## train on rendered faces, about a minute, and find the points of one
	$(BIN)/python -m flr.train
	$(BIN)/python -m flr.predict source=flr/assets/face.jpg overwrite=true
	@echo "The annotated image of a rendered face is in pictures/ of that folder."
	@echo "See the run: make ui, then open the link above"

ui: env ## the MLflow UI on loopback (PORT=5000)
	@echo "Runs: http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=flr"
	$(BIN)/mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$$(realpath -m $${FLR_OUTPUT:-outputs})/mlflow.db}"

team-env: env ## what a team's server needs in addition
	$(BIN)/pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev,team]'

team-server: team-env ## a team's tracking server: PostgreSQL and MLflow with accounts, all of it in TEAM=DIR (HOST, PORT, PGPORT)
	PORT=$(PORT) BIN=$(BIN) scripts/team_tracking.sh "$(TEAM)"

test: env ## the tests, in minutes
	$(BIN)/python -m pytest -n 2

test-all: env ## all tests, also the long ones, with more examples of each property; all but clusters and a team's server
	$(BIN)/python -m pytest -n 2 -m 'not cluster' --hypothesis-profile=many

test-team: team-env ## the tests that track, and those of accounts, against a team's server (wants PostgreSQL)
	$(BIN)/python -m pytest -p tests.team -n 2

test-cluster: env ## the launchers on a real SLURM and a real Ray, started here (wants apt-get install slurm-wlm)
	$(BIN)/pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[cluster]'
	$(BIN)/python -m pytest -m cluster

FUZZ = csv coco xml cvat labelstudio pts scheme image aflw w300lp cofw lapa
fuzz: env ## change label files and images for ten minutes each, in search of faults (wants pip install atheris)
	@for target in $(FUZZ); do mkdir -p build/fuzz/$$target; \
	  $(BIN)/python -m tests.fuzz $$target build/fuzz/$$target -max_total_time=600 -artifact_prefix=build/fuzz/$$target- || exit; done

reproduce: env ## each published config, a few steps on rendered faces, against its record
	@for file in conf/experiment/published/*.yaml; do $(BIN)/python -m flr.reproduce name=published/$$(basename $$file .yaml) || exit; done

FEW = fair/celeba_cnn,fair/muct_cnn,fair/heatmap_fpn,fair/resnet18
fair: env ## the tables of experiments/fair/, 10 to 14 core hours (wants FLR_DATA with 300w/ and youtube_faces/)
	$(BIN)/python -m flr.train sweep=fair tracking.experiment=fair-300w
	$(BIN)/python -m flr.train sweep=fair_heavy tracking.experiment=fair-300w
	$(BIN)/python -m flr.train sweep=fair_objectives tracking.experiment=fair-objectives
	$(BIN)/python -m flr.train sweep=fair seed=0 data=youtube_faces tracking.experiment=fair-youtube
	$(BIN)/python -m flr.train sweep=fair seed=0 experiment=$(FEW) data.scheme=celeba5 data.crop.policy.scale=2.5 tracking.experiment=fair-celeba5
	$(BIN)/python -m flr.train sweep=fair seed=0 experiment=$(FEW) data.scheme=kaggle15 data.crop.policy.scale=2 tracking.experiment=fair-kaggle15
	$(BIN)/python -m flr.compare group=objective tracking.experiment=fair-objectives out=experiments/fair/objectives
	@for set in 300w youtube celeba5 kaggle15; do \
	  $(BIN)/python -m flr.compare group=name tracking.experiment=fair-$$set out=experiments/fair/$$set || exit; done

bench: env ## speed compared with other libraries, recorded in benchmarks/results/ (wants FLR_DATA with 300w/ and celeba/img_celeba/, an hour, and a quiet machine)
	$(BIN)/python -m benchmarks.input_path
	$(BIN)/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.start data=ibug
	$(BIN)/python -m benchmarks.switches model=heatmap_fpn
	$(BIN)/python -m benchmarks.switches model=ytf_cnn
	$(BIN)/python -m benchmarks.switches model=sepconv_light data.crop.size=64
	$(BIN)/python -m benchmarks.training model=sepconv_light data.crop.size=64 trainer.speed=auto
	$(BIN)/python -m benchmarks.training model=celeba_cnn
	ROUNDS=3 $(BIN)/python -m benchmarks.speedrun experiment=records/speedrun
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.jitter
	$(BIN)/python -m benchmarks.fairness
	$(BIN)/python -m benchmarks.video
	$(BIN)/python -m benchmarks.camera

gpu: env ## on a machine with a GPU: its tests, then speed and the records trained on it (GPU.md in benchmarks/; wants FLR_DATA with 300w/)
	$(BIN)/python -c 'import torch, sys; torch.cuda.is_available() or sys.exit("make gpu: torch finds no CUDA device")'
	$(BIN)/python -m pytest tests/test_gpu.py
	$(BIN)/python -m benchmarks.switches model=heatmap_fpn
	$(BIN)/python -m benchmarks.switches model=ytf_cnn
	$(BIN)/python -m benchmarks.training model=heatmap_fpn trainer.speed=auto
	$(BIN)/python -m benchmarks.training model=ytf_cnn trainer.speed=auto
	ROUNDS=3 $(BIN)/python -m benchmarks.speedrun experiment=records/speedrun
	$(BIN)/python -m flr.train experiment=records/flagship
	$(BIN)/python -m flr.train experiment=records/large

lint: env ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs-env: env ## what the documentation site needs in addition
	$(BIN)/pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev,docs]'

docs: docs-env ## the documentation site, in build/site; stops at a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-serve: docs-env ## the documentation site on loopback (PORT=8001), built anew at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:$(if $(filter 5000,$(PORT)),8001,$(PORT))

figures: env ## the images of the README and the site, from rendered faces, and the README's tables (wants Chromium)
	$(BIN)/python -m scripts.figures
	$(BIN)/python -m scripts.docs_tables

lock: env ## write constraints.txt from this environment
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean: ## remove the environment and caches, keep outputs
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist
