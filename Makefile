# Sets up .venv and runs what a newcomer and a developer need. `make` alone lists the targets.
#   make demo PYTHON=python3.12                        another Python (3.10 to 3.13)
#   make demo PIP="--extra-index-url https://download.pytorch.org/whl/cpu"     PyTorch without CUDA, a tenth of the size

PYTHON ?= python3
PIP ?=
VENV := .venv
PY := $(VENV)/bin/python
DEMO ?= --recipe stable --epochs 10 --image-size 64 --batch-size 4 --sch-args warm_up_epochs 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint audit bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/installed  ## install, outline six real lesions, then train on synthetic ones for a few minutes
	$(PY) predict.py isic17 data/samples/images --truth data/samples/masks --output results/samples --existing overwrite
	@echo "Expert's outline green, network's red: results/samples/overlays. Next, a small training on synthetic images."
	$(PY) train.py --dataset demo --load-ckpt-path none $(DEMO)
	@echo "The report of the demo, for a browser: $$(ls -td results/vmunet_demo_* | head -n 1)/report.html"
	@echo "Next: source $(VENV)/bin/activate, then run the commands in README.md."

test: $(VENV)/installed-dev  ## install, run the tests, except the slow ones, on all cores
	$(PY) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST)

test-all: $(VENV)/installed-dev  ## install, run all tests
	$(PY) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(PYTEST)

lint: $(VENV)/installed-dev  ## check style, format and types: ruff, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

audit: $(VENV)/installed-dev  ## ask for known vulnerabilities of the installed packages
	@.ci/audit

bench: $(VENV)/installed  ## measure speed and memory on this machine: ten minutes on a CPU
	$(PY) -m benchmarks.scan
	$(PY) -m benchmarks.model
	$(PY) -m benchmarks.training
	$(PY) -m benchmarks.pipeline
	@if $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then $(PY) benchmarks/gpu.py; fi

clean:  ## remove the virtual environment and the caches; data, weights and results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The two files say that an installation went through; it is repeated when the requirements change.
$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else \
	  "$(PYTHON) is Python %d.%d, expected 3.10 to 3.13; choose one with PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and the rest into $(VENV); the first time this downloads much and takes some minutes."
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP) -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --use-pep517 $(PIP) -r requirements-dev.txt
	@touch $@
