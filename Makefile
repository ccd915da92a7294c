# The project's commands. `make help` lists them.

PYTHON ?= python3
VENV := .venv
CAMKIT := $(VENV)/bin/camkit
TABLES := conv_rest prepool_rest conv_log-softmax prepool_log-softmax prepool_logit

.DEFAULT_GOAL := help
.PHONY: help demo report test soak smoke lint speed gpu conform reproduce has-imagenet clean
# Two installs into one environment at a time would get in each other's way.
.NOTPARALLEL:

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## benchmark EfficientNet-Lite0 on six photos: table, CSV files, picture
	$(CAMKIT) bench --config configs/demo.toml
	$(CAMKIT) explain sample --model tf_efficientnet_lite0 --method gradcam,layercam,shapleycam,randomcam \
		-o results/local/demo/demo.png
	@echo
	@echo "Picture: results/local/demo/demo.png"
	@echo "Means:   results/local/demo/summary.csv"
	@echo "Images:  results/local/demo/tf_efficientnet_lite0/conv-rest/<method>.csv"

report: demo  ## the demo's results as a page, tables and figures, in results/demo
	for format in html md tex csv; do \
		$(CAMKIT) report results/local/demo --data sample -o results/demo/report.$$format || exit 1; done
	$(CAMKIT) compare results/local/demo -o results/demo/compare.md
	$(CAMKIT) plot results/local/demo --format png -o results/demo/figures

test: $(VENV)/.demo $(VENV)/.test  ## run the tests, a process per core (some 8 minutes on two)
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal

soak: $(VENV)/.demo $(VENV)/.test  ## kill a run some 300 times, start it again, compare (some minutes)
	$(VENV)/bin/python scripts/soak.py --kills 200

smoke: $(VENV)/.demo  ## a short real benchmark, run twice: the second time nothing may be left to do
	rm -rf results/local/smoke results/local/smoke-random
	$(CAMKIT) bench --config configs/smoke.toml
	$(CAMKIT) bench --config configs/smoke.toml 2>&1 | grep "nothing to do"
	$(CAMKIT) bench --config configs/smoke.toml --model resnet18,vgg16,swin_t --weights random \
		--metrics adcc --limit 2 --out results/local/smoke-random

lint: $(VENV)/.dev  ## ruff (rules and format) and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy scripts

speed: $(VENV)/.demo $(VENV)/.speed  ## measure camkit against its floor and other packages; wants a quiet machine
	$(VENV)/bin/python scripts/speed.py

gpu:  ## check and measure camkit on a GPU: a table in results/gpu (scripts/gpu.py)
	$(PYTHON) scripts/gpu.py

conform: $(VENV)/.demo $(VENV)/.conform  ## set maps and scores beside other packages': who computes what (some minutes)
	$(VENV)/bin/python scripts/conform.py

reproduce: has-imagenet $(VENV)/.demo  ## the paper's tables; needs CAMKIT_DATA, ImageNet's validation set
	@for table in $(TABLES); do $(CAMKIT) bench --config configs/$$table.toml || exit 1; done

has-imagenet:
	@test -e "$$CAMKIT_DATA" || { echo "make reproduce needs ImageNet's validation images:" \
		"CAMKIT_DATA=/data/imagenet/val make reproduce"; exit 1; }

clean:  ## remove the environment, caches, and the results of demo and smoke; all other results stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	rm -rf results/local/demo results/local/smoke results/local/smoke-random
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; .venv/.demo says that camkit and its extra `demo` are in it, and so on.
$(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "camkit needs Python 3.11" \
		"or newer, and $(PYTHON) is not. Name another one: make PYTHON=python3.12"; exit 1; }
	@$(VENV)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing camkit[$*] into $(VENV) (PyTorch is large: the first time takes some minutes)"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
