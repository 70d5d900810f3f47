# Two commands for a newcomer: `make train` and `make test`. Each sets up all it needs.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
PYTEST_ARGS ?= -n 2 --dist worksteal
READY := $(VENV)/.ready

# An environment of another Python than PYTHON=... names is made anew: venv leaves a Python that it finds.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) --version),$(shell $(PY) --version 2>/dev/null))
CLEAR := --clear
.PHONY: $(READY)
endif
endif

.PHONY: train test slow lint docs clean

train: $(READY)
	@$(PY) -m dit.cli.first_run

test: $(READY)
	$(PY) -m pytest -m "not slow and not gpu" $(PYTEST_ARGS)

slow: $(READY)
	$(PY) -m pytest -m "slow and not gpu" $(PYTEST_ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "$(CURDIR)/site/index.html"

# The environment holds the dependencies alone: the project itself runs from its own folder, so that
# several clones can share one environment. It is made again when pyproject.toml changes. venv refuses a folder
# that is a symbolic link, so a link is followed first.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dit needs Python 3.11 or later; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(CLEAR) $(or $(realpath $(VENV)),$(VENV))
	$(PY) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --progress-bar off -r $(VENV)/requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
