# `make demo` and `make test` work in a fresh clone: each builds .venv from the lock file first.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c 1 2>/dev/null && echo python3.12 || echo python3)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test lint lock clean

demo: $(STAMP)
	$(RUN) -m scripts.demo --config scripts/configs/demo.yaml $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

$(STAMP): requirements.lock pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --quiet --python $(RUN) -r requirements.lock
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --no-deps -e .
	touch $@

# After a change of dependencies in pyproject.toml. No index addresses in the file.
lock: $(STAMP)
	$(VENV)/bin/uv pip compile --universal --python-version 3.11 --extra dev --no-emit-index-url --no-annotate --no-header --upgrade pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
