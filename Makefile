# Each target sets up .venv first, on a fresh clone too. PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT ?= benchmarks/results/$(shell $(BIN)/python -m benchmarks.cpu)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q --no-compile  # of the packages, Python compiles what is imported
OLDEST_TRITON := $(VENV)/triton-3.6.0
# On two cores, one for each process of pytest.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run serve wheel quick test test-all browser cluster hostile lint resolve oldest-triton format bench kernels-report gpu readme pictures docs dev clean

unexport PYTHONDONTWRITEBYTECODE  # or each of some hundred processes compiles every module anew

run: $(INSTALLED)  ## accuracy, predictions, errors and speed on this machine, in under 4 minutes
	$(BIN)/python examples/tour.py

serve: $(INSTALLED)  ## the server with the packaged digits model, and pictures to try on its page
	$(BIN)/python examples/serve_digits.py --port $(or $(PORT),8000)

quick: $(INSTALLED)  ## the first case of each test that is quick, in 90 seconds on two cores
	$(PYTEST) --quick --cases 1

test: $(INSTALLED)  ## the first three cases of each test that is not slow, in 10 minutes on two cores
	$(PYTEST) --cases 3

test-all: browser oldest-triton $(INSTALLED)  ## every test, as CI runs them
	OLDEST_TRITON=$(OLDEST_TRITON) $(PYTEST)

wheel: $(INSTALLED)  ## dist/: the source archive, and its wheel for this Python and, on Linux, any distribution as new as this
	rm -rf dist
	$(BIN)/python -m build --outdir dist/built
	mv dist/built/*.tar.gz dist
	if [ "$$(uname)" = Linux ]; then \
		PATH="$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist dist/built/*.whl; \
	else mv dist/built/*.whl dist; fi
	rm -r dist/built

browser:  ## Chromium, by apt-get where it is missing and may be installed; without it the tests of the page are skipped
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		[ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq --no-install-recommends chromium; \
	} || echo "no Chromium, and it cannot be installed by apt-get as root: the tests of the page are skipped"

cluster: $(INSTALLED)  ## batch and serve on Ray, on this machine alone; installs the extra "ray"
	$(INSTALL) -c constraints.txt -e ".[dev,ray]"
	BY_RAY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/bulk/test_on_ray.py tests/serving/test_on_ray.py

hostile: EFFORT = 40
hostile: $(INSTALLED)  ## damaged files, kills, leaks: an hour, EFFORT times what CI tries; OUT=folder takes the JSON
	mkdir -p $(OUT)
	EFFORT=$(EFFORT) HOSTILE_RESULTS=$(OUT)/hostile.json OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist loadfile --timeout 7200 tests/hostile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

resolve: $(INSTALLED)  ## constraints.txt resolves from the public registry alone and pins all that is installed
	$(BIN)/python .ci/resolve.py 3.11 3.12 3.13 3.14

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## every peer on every variant, some hours; OUT=folder takes the JSON
	mkdir -p $(OUT)
	$(BIN)/python -m pytest benchmarks/test_speed.py --benchmark-json=$(OUT)/speed.json
	$(BIN)/python -m benchmarks.accuracy $(OUT)/accuracy.json
	$(BIN)/python -m benchmarks.token_precision $(OUT)/token_precision.json
	$(BIN)/python -m benchmarks.engines_report $(OUT)/engines.json
	$(BIN)/python -m benchmarks.preprocessing $(OUT)/preprocessing.json
	$(BIN)/python -m benchmarks.held_out $(OUT)/held_out.json
	$(BIN)/python -m benchmarks.verdicts $(OUT)/verdicts.json
	$(BIN)/python -m benchmarks.int8 $(OUT)/int8.json
	$(BIN)/python -m benchmarks.int8_accuracy $(OUT)/int8_accuracy.json
	$(BIN)/python -m benchmarks.int8_parts $(OUT)/int8_parts.json
	$(BIN)/python -m benchmarks.sizes $(OUT)/sizes.json
	$(BIN)/python -m benchmarks.time_parts $(OUT)/time_parts.json
	$(BIN)/python -m benchmarks.detector $(OUT)/detector.json
	$(BIN)/python -m benchmarks.detector_accuracy $(OUT)/detector_accuracy.json
	$(BIN)/python -m benchmarks.serving $(OUT)/serving.json --soak 600

kernels-report: oldest-triton $(INSTALLED)  ## every kernel compiled for six GPUs, by two Tritons; needs no GPU
	$(BIN)/python -m benchmarks.kernels_report --chips 80 86 89 100 120
	$(BIN)/python -m benchmarks.kernels_report --chips 90 --against benchmarks/results/nvidia-h100/estimate.json
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m benchmarks.kernels_report

gpu: OUT = benchmarks/results/gpu
gpu:  ## tests and benchmarks on a CUDA GPU, installing nothing: OUT=folder SECONDS=530 STEPS="check tune ..." RESUME=gpu.json
	$(PYTHON) -m benchmarks.gpu $(STEPS) --out $(OUT) $(if $(VARIANTS),--variants $(VARIANTS)) \
		$(if $(BATCH),--batch $(BATCH)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(RESUME),--resume $(RESUME))

readme: $(INSTALLED)  ## the tables of README.md and docs/ from the stored results
	$(BIN)/python -m benchmarks.render

pictures: browser $(INSTALLED)  ## the pictures of README.md and docs/, from stored results or by running the product
	$(BIN)/python -m docs.drawing

docs: $(INSTALLED)  ## the site, into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dev: $(INSTALLED)  ## an editable install with every tool, and the pre-commit hooks
	$(BIN)/pre-commit install

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard csrc/*) | $(BIN)/python
	$(INSTALL) -c constraints.txt -e ".[dev]"
	touch $@

oldest-triton: $(OLDEST_TRITON)/.installed  ## the oldest Triton that pyproject.toml allows, beside the pinned one

$(OLDEST_TRITON)/.installed: | $(BIN)/python  # whose interpreter takes no newer NumPy
	rm -rf $(OLDEST_TRITON)
	$(INSTALL) --no-deps --target $(OLDEST_TRITON) triton==3.6.0 numpy==2.3.5
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
