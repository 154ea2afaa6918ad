# m2f: Mask2Former on NVIDIA Triton. `make help` lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo page test test-page test-official test-exact chaos soak fuzz lint serve bench bench-postprocess bench-preprocess export train-demo eval-demo export-demo docs docs-serve docs-links sbom audit clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(VENV)/.serve: pyproject.toml hatch_build.py $(wildcard src/m2f/kernel/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[server,client]'
	@touch $@

$(VENV)/.dev: pyproject.toml export/openmmlab.txt export/constraints.txt $(VENV)/.serve
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,export,engine]' --constraint export/constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement export/openmmlab.txt
	@touch $@

setup: $(VENV)/.serve  ## make .venv with all that serving and the demo need (no torch)

setup-dev: $(VENV)/.dev  ## add the tools for tests, training and export (torch, mmdetection)

demo: setup  ## serve the embedded model, send it the example images, leave pictures and JSON in demo_output/
	$(BIN)/python examples/demo.py --out demo_output

$(VENV)/.page: $(VENV)/.serve
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

page: $(VENV)/.page  ## serve the embedded model and a page to try it in the browser, until Ctrl-C
	$(BIN)/python examples/page.py

test: setup-dev  ## run the tests, against the real server too
	$(BIN)/python -m pytest

$(VENV)/.browser: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check 'playwright>=1.50'
	npm install --silent --prefix $(VENV)/browser '@sparticuz/chromium@147'
	@touch $@

test-page: $(VENV)/.browser  ## the page of m2f demo in a headless Chromium (needs npm; 120 MB to download)
	$(BIN)/python -m pytest -m browser

test-official: setup-dev  ## export every official Mask2Former configuration at full size, random weights (half an hour)
	$(BIN)/python -m pytest -m official -s

test-exact: setup-dev  ## every kernel against mmdetection on 10,000 random scenes, pixel by pixel (some minutes)
	$(BIN)/python -m pytest -m exact -s

chaos: setup-dev  ## kills, stops, overload and bad inputs in their long forms (bounded, on loopback)
	$(BIN)/python -m pytest -m 'chaos and not soak' -s

MINUTES := 10
soak: setup-dev  ## all kinds of requests for ten minutes: nothing grows, nothing gets slower (or MINUTES=120)
	$(BIN)/python -m pytest -m chaos -s 'tests/test_chaos_soak.py::test_nothing_grows_and_nothing_gets_slower[$(MINUTES)]'

fuzz: setup-dev  ## the native kernel under AddressSanitizer and UBSan for ten minutes
	$(BIN)/python -W ignore tests/fuzz_kernel.py --seconds 600

lint: setup-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: setup  ## serve model_repository/ on ONNX Runtime until Ctrl-C
	$(BIN)/m2f serve --config-name cpu

bench: setup  ## drive both ensembles with perf_analyzer
	$(BIN)/python benchmarks/perf_analyzer.py

bench-postprocess: setup-dev  ## post-processing against mmdetection's and others': time, floor, memory, growth, in Triton
	$(BIN)/python -m benchmarks.postprocess

bench-preprocess: setup-dev  ## file to the engine's input, against mmdetection's pipeline and Hugging Face's
	$(BIN)/python -m benchmarks.preprocess

export: setup-dev  ## your model to a repository: make export CONFIG=… CHECKPOINT=… REPOSITORY=… [ARGS=…]
	$(if $(and $(CONFIG),$(REPOSITORY)),,$(error usage: make export CONFIG=… CHECKPOINT=… REPOSITORY=… [ARGS=…]))
	$(BIN)/m2f export $(CONFIG) $(CHECKPOINT) --repository $(REPOSITORY) $(ARGS)

data/shapes/annotations/val.json: | setup-dev
	$(BIN)/python examples/shapes/generate.py --out data/shapes --train 8000 --val 300 --seed 7

data/shapes_val/annotations/val.json: | setup-dev
	$(BIN)/python examples/shapes/generate.py --out data/shapes_val --train 0 --val 300 --seed 7

train-demo: data/shapes/annotations/val.json  ## train the embedded model from scratch (hours on a CPU; resumes)
	$(BIN)/python examples/shapes/train.py --data data/shapes --work-dir work/shapes --resume

eval-demo: data/shapes_val/annotations/val.json  ## mask AP of the embedded checkpoint on 300 held-out images
	$(BIN)/python examples/shapes/evaluate.py examples/shapes/mask2former_shapes.pth --data data/shapes_val

export-demo: setup-dev  ## export the embedded checkpoint to ONNX, checked against PyTorch
	$(BIN)/m2f export examples/shapes/mask2former_shapes.py examples/shapes/mask2former_shapes.pth \
	  --onnx model_repository/mask2former_engine/1/model.onnx --size 256 256

docs: setup-dev  ## build the documentation into site/; any warning is an error
	$(BIN)/mkdocs build

docs-serve: setup-dev  ## show the documentation at http://127.0.0.1:8010, built anew at every change
	$(BIN)/mkdocs serve --no-strict --dev-addr 127.0.0.1:8010

docs-links: docs  ## check the links to other sites, too (needs the network)
	$(BIN)/linkchecker --check-extern site/index.html

# the tools in an environment of their own, so that only what a user gets is looked at
$(VENV)/.audit: pyproject.toml
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7' 'pip-audit>=2.9'
	$(PYTHON) -m venv --clear --without-pip $(VENV)/shipped
	$(VENV)/audit/bin/pip --python $(VENV)/shipped/bin/python install --quiet --disable-pip-version-check '.[server,client]'
	@touch $@

sbom: $(VENV)/.audit  ## write what a user installs to dist/m2f.cdx.json (CycloneDX)
	@mkdir -p dist
	$(VENV)/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file dist/m2f.cdx.json $(VENV)/shipped/bin/python

audit: $(VENV)/.audit  ## ask PyPI for known vulnerabilities in what the image pins and what a user installs (needs the network)
	$(VENV)/audit/bin/pip --python $(VENV)/shipped/bin/python freeze --exclude m2f > $(VENV)/shipped.txt
	@for list in deploy/constraints.txt $(VENV)/shipped.txt; do \
	  $(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $$list || { \
	    echo "make audit: $$list has vulnerabilities, or PyPI's advisories are out of reach: see above"; exit 1; }; \
	done

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) demo_output data site work build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
