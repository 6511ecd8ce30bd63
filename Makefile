# make demo        install into .venv, then run the whole job on a built-in data set
# make test        install, then check and run the tests
# make check       lint, format and type checks, changing nothing
# make lint-fix    mend what lint and format can mend by themselves
#
# PYTHON=python3.12 make demo     chooses the Python that .venv is made with (remove .venv to choose again).
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo     saves gigabytes where there is no GPU.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
DEMO := $(VENV)/bin/trimms run --model torchvision:resnet18 --data digits --input-size 1x3x32x32 \
	--train-epochs 12 --speedup 2 --out runs/demo

.PHONY: install demo test check lint-fix

install: $(STAMP)

demo: $(STAMP)
	$(DEMO)

test: check
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

lint-fix: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Old Pythons run this too, so it keeps to what they all understand; it writes what is wrong, or nothing.
EXAMINE := import sys; \
	found = "%d.%d" % sys.version_info[:2]; \
	sys.version_info < (3, 11) and sys.exit("found " + found); \
	from importlib.util import find_spec; \
	lacking = [name for name in ("venv", "ensurepip") if not find_spec(name)]; \
	lacking and sys.exit("found " + found + " without " + " and ".join(lacking))
HAS_VENV = $(VENV)/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PROBLEM = $(shell $(HAS_VENV) && exit; \
	command -v $(PYTHON) >/dev/null 2>&1 || { echo 'found no $(PYTHON)'; exit; }; \
	said=$$($(PYTHON) -c '$(EXAMINE)' 2>&1) || echo "$${said:-$(PYTHON) does not run}")
REMEDY := On Debian or Ubuntu: apt install python3 python3-venv; another one: PYTHON=python3.12 make

# A .venv that was left half made, or made with a Python that is too old, is made anew.
$(STAMP): pyproject.toml
	$(if $(PROBLEM),$(error trimms needs Python ≥ 3.11 with venv; $(PROBLEM). $(REMEDY)))
	@$(HAS_VENV) || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV); PyTorch is large, this can take some minutes."
	@$(VENV)/bin/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[prune,serve,dev]'
	@touch $@
