# m2f: Mask2Former on NVIDIA Triton. `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 2 ? 4 : cores > 4 ? 8 : 2 * cores)))
PYTEST := python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo page serve export lint test test-more test-all test-newest test-page test-ray test-official test-exact chaos \
  soak fuzz bench bench-engines bench-autoscaling bench-postprocess bench-preprocess bench-shards bench-tiles rolling gpu-check train-demo eval-demo export-demo \
  docs docs-serve docs-links sbom audit clean

help:  ## list the targets
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5) ":"} /^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

##@ Serve

# setup_env.sh writes its stamp, .serve or .newest, when all is installed
$(VENV)/.serve: setup_env.sh pyproject.toml hatch_build.py $(wildcard src/m2f/kernel/*)
	@./setup_env.sh

$(VENV)/.dev: $(VENV)/.serve pyproject.toml export/openmmlab.txt export/constraints.txt
	$(PIP) --editable '.[dev,export,engine]' --constraint export/constraints.txt
	$(PIP) --no-deps --requirement export/openmmlab.txt
	@touch $@

# what the manifests in deploy/ are checked with; kserve without its dependencies, for only its tables of fields are read
$(VENV)/.deploy: $(VENV)/.dev tests/install_helm.py
	$(PIP) --no-deps kserve==0.21.0
	$(BIN)/python tests/install_helm.py $(BIN)/helm
	@touch $@

# the services that m2f is compared with, in an environment of their own
$(VENV)/.peers: $(VENV)/.dev benchmarks/peers/requirements.txt
	$(BIN)/python -m venv $(VENV)/peers
	$(VENV)/peers/bin/pip install --quiet --disable-pip-version-check '.[export]' --requirement benchmarks/peers/requirements.txt \
	  --constraint export/constraints.txt
	$(VENV)/peers/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement export/openmmlab.txt
	@touch $@

# SAHI, with which `make bench-tiles` compares
$(VENV)/.sahi: $(VENV)/.dev benchmarks/tiles/requirements.txt
	$(BIN)/python -m venv $(VENV)/sahi
	$(VENV)/sahi/bin/pip install --quiet --disable-pip-version-check --editable '.[large]' --requirement benchmarks/tiles/requirements.txt
	$(VENV)/sahi/bin/pip install --quiet --disable-pip-version-check --no-deps sahi==0.12.8
	@touch $@

$(VENV)/.page: $(VENV)/.serve
	$(PIP) --editable '.[demo]'
	@touch $@

setup: $(VENV)/.serve  ## make .venv for serving and the demo, without torch; PYTHON=... chooses the interpreter

setup-dev: $(VENV)/.dev $(VENV)/.deploy  ## add to .venv what tests, training and export need: torch, mmdetection

demo: setup  ## serve the embedded model and segment the example images; pictures and JSON go to demo_output/
	$(BIN)/python examples/demo.py --out demo_output

page: $(VENV)/.page  ## serve the embedded model and a web page to try it in, until Ctrl-C
	$(BIN)/python examples/page.py

serve: setup  ## serve model_repository/ on the CPU, until Ctrl-C
	$(BIN)/m2f serve --config-name cpu

export: setup-dev  ## make a model repository of your model: make export CONFIG=... CHECKPOINT=... REPOSITORY=... [ARGS=...]
	$(if $(and $(CONFIG),$(REPOSITORY)),,$(error usage: make export CONFIG=... CHECKPOINT=... REPOSITORY=... [ARGS=...]))
	$(BIN)/m2f export $(CONFIG) $(CHECKPOINT) --repository $(REPOSITORY) $(ARGS)

##@ Test

$(VENV)/.newest: $(VENV)/.serve setup_env.sh pyproject.toml
	@./setup_env.sh newest

# an environment of its own: Ray has 600 MB, and its pyarrow needs a newer NumPy than the server
$(VENV)/.ray: $(VENV)/.serve pyproject.toml examples/ray/requirements.txt
	$(BIN)/python -m venv $(VENV)/ray
	$(VENV)/ray/bin/pip install --quiet --disable-pip-version-check --editable '.[client,test]' 'moto[s3,server]>=5.1' \
	  --requirement examples/ray/requirements.txt
	@touch $@

$(VENV)/.browser: $(VENV)/.dev
	$(PIP) 'playwright>=1.50'
	npm install --silent --prefix $(VENV)/browser '@sparticuz/chromium@147'
	@touch $@

# prometheus and promtool: the system's, or else Debian's package, unpacked
$(VENV)/.prometheus: $(VENV)/.serve
	@if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then \
	  mkdir -p $(VENV)/prometheus && cd $(VENV)/prometheus && download="apt-get download -qq -o APT::Sandbox::User=root prometheus" && \
	  { $$download 2>/dev/null || { apt-get update -qq && $$download; }; } && dpkg-deb --extract prometheus_*.deb . || { \
	    echo "make: install Prometheus with your system's packages: apt-get cannot bring it here"; exit 1; }; \
	fi
	@touch $@

lint: setup-dev  ## check style (ruff), types (mypy) and the direction of imports (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: setup-dev  ## run the tests, with a real server where they need one (up to 8 minutes on 2 cores)
	$(BIN)/$(PYTEST)

test-more: setup-dev test-newest  ## run the slower tests too: large models, sanitizers, the newest Python and NumPy
	$(BIN)/$(PYTEST) -m 'more and not chaos'

# what both need (imports, servers, exports) is made once
test-all: setup-dev  ## run the tests of make test and make test-more in one go
	$(BIN)/$(PYTEST) -m 'not official and not exact and not chaos and not browser and not ray'

# the tests of the client, without the page of m2f demo, and those named after a module of the core
CORE := $(patsubst src/m2f/%.py,tests/test_%.py,$(wildcard src/m2f/*.py))
NEWEST := $(filter-out tests/test_client_demo.py tests/test_limits.py,$(wildcard tests/test_client_*.py $(CORE)))
test-newest: $(VENV)/.newest  ## test the client and the core on the newest Python here, with NumPy 2 and the current OpenCV
	$(VENV)/newest/bin/$(PYTEST) -p no:cacheprovider -m 'not server and not torch and not more and not chaos' $(NEWEST)

test-page: $(VENV)/.browser  ## test the page of m2f demo in a headless Chromium (needs npm; downloads 120 MB)
	$(BIN)/python -m pytest -m browser

test-ray: $(VENV)/.ray  ## run the example of Ray Data while nodes, server and driver go away (downloads 200 MB)
	$(VENV)/ray/bin/python -m pytest -m ray tests/test_examples_ray.py

test-official: setup-dev  ## export every official Mask2Former configuration at full size, and serve every kind of checkpoint (half an hour)
	$(BIN)/python -m pytest -m official -s

test-exact: setup-dev  ## compare every kernel with mmdetection on 10,000 random scenes, pixel by pixel (some minutes)
	$(BIN)/python -m pytest -m exact -s

chaos: setup-dev  ## run the long tests of kills, stops, overload and bad inputs, on loopback only
	$(BIN)/python -m pytest -m 'chaos and not soak' -s --hypothesis-profile new

MINUTES := 10
soak: setup-dev  ## send requests of all kinds for 10 minutes and check memory and speed; MINUTES=120 for longer
	$(BIN)/python -m pytest -m chaos -s 'tests/test_chaos_soak.py::test_nothing_grows_and_nothing_gets_slower[$(MINUTES)]'

fuzz: setup-dev  ## fuzz the native kernel under AddressSanitizer and UBSan for 10 minutes
	$(BIN)/python -W ignore tests/fuzz_kernel.py --seconds 600

##@ Measure

bench: setup-dev $(VENV)/.peers  ## measure everything, about 40 minutes; run again to go on; make bench ARGS=--quick takes 3 minutes
	$(BIN)/python -m benchmarks $(ARGS)

bench-engines: setup-dev  ## measure the engine alone: ONNX Runtime and OpenVINO, threads, shapes, precisions
	$(BIN)/python -m benchmarks engines $(ARGS)

bench-autoscaling: setup-dev $(VENV)/.prometheus  ## measure what to scale by, under a real Prometheus, and simulate a hundred replicas (12 minutes)
	$(BIN)/python -m benchmarks.autoscaling $(ARGS)

bench-postprocess: setup-dev  ## measure post-processing against mmdetection and others: time, memory, growth, in Triton
	$(BIN)/python -m benchmarks.postprocess

rolling: setup-dev  ## measure what replicas lose when they stop, die or are added, and what they carry together; ARGS=--quick
	$(BIN)/python -m benchmarks.rolling $(ARGS)

bench-shards: setup-dev  ## run 20,000 pictures in 8 shards, kill three, merge and check; ARGS='--images 200000' takes longer
	$(BIN)/python -m benchmarks.shards $(ARGS)

bench-tiles: setup-dev $(VENV)/.sahi  ## measure large pictures in tiles: AP, time and memory beside SAHI, a TIFF of 20,000 x 20,000; ARGS=--quick
	$(BIN)/python -m benchmarks.tiles $(ARGS)

gpu-check:  ## on a machine with a GPU: serve, compare and time, in 12 minutes and without a network; writes gpu_check.md
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) tests/gpu_check.py $(ARGS)

bench-preprocess: setup-dev  ## measure preprocessing (file to engine input) against mmdetection and Hugging Face
	$(BIN)/python -m benchmarks.preprocess

##@ Embedded model

data/shapes/annotations/val.json: | setup-dev
	$(BIN)/python examples/shapes/generate.py --out data/shapes --train 8000 --val 300 --seed 7

data/shapes_val/annotations/val.json: | setup-dev
	$(BIN)/python examples/shapes/generate.py --out data/shapes_val --train 0 --val 300 --seed 7

train-demo: data/shapes/annotations/val.json  ## train the embedded model from scratch (hours on a CPU); run again to resume
	$(BIN)/python examples/shapes/train.py --data data/shapes --work-dir work/shapes --resume

eval-demo: data/shapes_val/annotations/val.json  ## compute the mask AP of the embedded checkpoint on 300 held-out images
	$(BIN)/python examples/shapes/evaluate.py examples/shapes/mask2former_shapes.pth --data data/shapes_val

export-demo: setup-dev  ## export the embedded checkpoint to ONNX and compare it with PyTorch
	$(BIN)/m2f export examples/shapes/mask2former_shapes.py examples/shapes/mask2former_shapes.pth \
	  --onnx model_repository/mask2former_engine/1/model.onnx --size 256 256

##@ Documentation

docs: setup-dev  ## build the documentation into site/; a warning is an error
	$(BIN)/mkdocs build

docs-serve: setup-dev  ## show the documentation at http://127.0.0.1:8010 and rebuild it at every change
	$(BIN)/mkdocs serve --no-strict --dev-addr 127.0.0.1:8010

docs-links: docs  ## check the documentation's links to other sites (needs the network)
	$(BIN)/linkchecker --check-extern site/index.html

##@ Release

# the tools have an environment of their own, so that they look only at what a user installs
$(VENV)/.audit: $(VENV)/.serve pyproject.toml
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7' 'pip-audit>=2.9'
	$(BIN)/python -m venv --clear --without-pip $(VENV)/shipped
	$(VENV)/audit/bin/pip --python $(VENV)/shipped/bin/python install --quiet --disable-pip-version-check '.[server,client]'
	@touch $@

sbom: $(VENV)/.audit  ## list the packages that a user installs in dist/m2f.cdx.json (CycloneDX)
	@mkdir -p dist
	$(VENV)/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file dist/m2f.cdx.json $(VENV)/shipped/bin/python

audit: $(VENV)/.audit  ## look up known vulnerabilities of the image's packages and of a user's (needs the network)
	$(VENV)/audit/bin/pip --python $(VENV)/shipped/bin/python freeze --exclude m2f > $(VENV)/shipped.txt
	@for list in deploy/constraints.txt $(VENV)/shipped.txt; do \
	  $(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $$list || { \
	    echo "make audit: $$list has vulnerabilities, or PyPI's advisories cannot be reached: see above"; exit 1; }; \
	done

clean:  ## remove the environments and everything else that make has made
	rm -rf $(VENV) demo_output data site work build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
