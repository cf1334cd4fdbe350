# Each command makes its own virtual environment first (tools/setup.sh); nothing outside it is changed.
VENV ?= .venv
BIN := $(VENV)/bin
# These tests compare float32 on the CPU; a GPU is hidden from them, so that they say the same on every machine.
CPU := CUDA_VISIBLE_DEVICES=
# Programs that `make judges` installed are found; tests of those in REQUIRE fail where they would be skipped.
REQUIRE ?=
# Half of the cores for each of two test processes; torch, OpenMP and MKL read it when they start.
HALF := OMP_NUM_THREADS=$$(expr $$(nproc 2>/dev/null || echo 1) / 2 \| 1)
JUDGED := PATH="$(abspath $(BIN)):$$PATH"

.PHONY: demo test test-slow test-gpu test-all judges lint clean

demo:            ## the main job: train the embedded model on real rows, save, reload, compare
	@tools/setup.sh $(VENV) all
	@$(BIN)/hasten demo

test:            ## the default test suite (CPU, a few minutes)
	@tools/setup.sh $(VENV) dev
	@$(CPU) $(JUDGED) $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist worksteal --require-judges="$(REQUIRE)"

test-slow:       ## real models and whole commands
	@tools/setup.sh $(VENV) dev
	@$(CPU) $(JUDGED) $(HALF) $(BIN)/python -m pytest -m "slow and not gpu" -n auto --maxprocesses 2 --dist worksteal --require-judges="$(REQUIRE)"

test-gpu:        ## what needs a CUDA device
	@tools/setup.sh $(VENV) dev
	@$(BIN)/python -m pytest -m gpu

test-all: test test-slow

judges:          ## other programs that tests ask: llama.cpp, sentencepiece, Go, hadolint, check-jsonschema, uv (150 MB)
	@tools/setup.sh $(VENV) dev
	@tools/judges.sh $(VENV)

lint:            ## format, rules, types, spelling
	@tools/setup.sh $(VENV) dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/codespell src docs examples benchmarks README.md CHANGELOG.md CONTRIBUTING.md

clean:
	rm -rf $(VENV)

# Beside another set of versions: `make matrix SET=playbook` (tools/sets), `make matrix SET=middle ARGS=--part`.
.PHONY: matrix arm-wheels
matrix:          ## the tests beside another set of versions
	@tools/matrix.sh "$(SET)" $(ARGS)

arm-wheels:      ## whether everything has a wheel for Arm Linux
	@tools/setup.sh $(VENV) dev
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/python tools/arm_wheels.py
