# make demo    supervised and PCR on the generated set, side by side
# make test    the tests
# make test-faults    runs killed at many places, broken files: some minutes
# Both make the virtual environment .venv first, if it is not there or pyproject.toml is newer.
# A CPU-only build of PyTorch: make demo TORCH="torch torchvision --extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-faults lint format clean

demo: $(VENV)/installed
	rm -rf runs/demo
	OMP_NUM_THREADS=1 $(BIN)/python train.py -m method=supervised,pcr hydra.sweep.dir=runs/demo
	$(BIN)/python report.py runs='runs/demo/*' output=runs/demo/report

test: $(VENV)/installed
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -n 2 --nbmake tests notebooks

test-faults: $(VENV)/installed
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -m faults tests

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH) -e ".[dev,export]"
	touch $@

clean:
	rm -rf $(VENV) runs data/synthetic
