# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv first.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check lint format audit stack stack-down demo-stack lock clean

# The main job. Real files: make demo ARCHIVE=DIR SOURCE=knmi
demo: $(READY)
	$(BIN)/squall demo $(if $(ARCHIVE),"$(ARCHIVE)" --source "$(SOURCE)")

# The real parts on this machine, without containers: S3, PostgreSQL, Prefect, Ray, Dask.
stack: $(READY)
	$(BIN)/python -m infra.stack up

stack-down: $(READY)
	$(BIN)/python -m infra.stack down

# The whole loop on them: a bucket, a Dask scheduler, a Ray job, a schedule.
demo-stack: $(READY)
	$(BIN)/python -m infra.stack demo

# Two processes, a module's tests in one of them: most of the time is spent waiting for servers.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The fast loop.
check: lint
	$(BIN)/python -m pytest -q -m "not slow"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch is named by hand: what a machine needs (CPU or which CUDA) is not ours to lock. pip installs
# it, from wherever pip is told to look on this machine; uv the rest, in a fifth of pip's time.
$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -c constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev]"
	touch $(READY)

# Known weaknesses of what is locked, and the licences of it. Fails where nobody can be asked.
audit: $(READY)
	$(BIN)/uv tool run pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt
	$(BIN)/python -m infra.licences
	git diff --exit-code infra/licences.md

# Writes constraints.txt anew from what pyproject.toml admits today.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet "$(TORCH)" -e ".[dev]"
	.venv-lock/bin/python -m pip freeze --exclude-editable \
		| grep -Ev '^(torch==|triton==|uv==|nvidia-|cuda-|squall)' > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache *.egg-info
