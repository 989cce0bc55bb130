# make demo    supervised, PCR and pcr_plus on the generated set (color views: colors name no class there), side by side
# make test    the tests
# make test-faults   kills, faults and fuzzing, which take minutes
# make bench   time and memory, side by side with the usual ways (a quiet machine, a quarter of an hour)
# make docs    the documentation as a site: site/index.html (its search needs a server: .venv/bin/mkdocs serve)
# make notebooks    runs the notebooks and keeps their outputs in them
# make dashboards [PROJECT=ENTITY/PROJECT]    pushes the W&B dashboards (needs a key: wandb login)
# All make the virtual environment .venv first, if it is not there or pyproject.toml is newer; demo installs what
# trainings need, the others what tests and documents need as well.
# A CPU-only build of PyTorch: make demo TORCH="torch torchvision --extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-faults bench notebooks docs dashboards lint format clean

demo: $(VENV)/runs
	rm -rf runs/demo
	OMP_NUM_THREADS=1 $(BIN)/python train.py -m method=supervised,pcr,pcr_plus recipe.strong_color=true hydra.sweep.dir=runs/demo
	$(BIN)/python report.py runs='runs/demo/*' output=runs/demo/report

dashboards: $(VENV)/installed
	$(BIN)/python dashboards/workspaces.py $(PROJECT)

test: $(VENV)/installed
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -n 2 --dist worksteal --nbmake notebooks tests

bench: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py

notebooks: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --nbmake --overwrite notebooks

docs: $(VENV)/installed
	$(BIN)/python -m mkdocs build --strict

test-faults: $(VENV)/installed
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -m faults -rP tests

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell

format: $(VENV)/installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(VENV)/runs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH) -e .
	touch $@

$(VENV)/installed: $(VENV)/runs
	$(BIN)/pip install --quiet $(TORCH) -e ".[dev,export]"
	touch $@

clean:
	rm -rf $(VENV) runs site data/synthetic
