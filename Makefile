# Everything a checkout can do; `make help` lists it. No target needs a prepared machine: each one first makes the
# environment it needs from a lock file in requirements/, if it is missing or older than that.

PYTHON ?= python3
# Test processes side by side: more than there are cores, for the tests wait more than they compute.
PYTEST_WORKERS ?= 6
# Clusters side by side for test-nfs: a server and two clients each, 768 MiB of memory, 1.5 GiB for other file systems.
LABS ?= 2
# Slurm clusters side by side for test-slurm: most of the time they wait for Snakemake to ask how jobs are.
CLUSTERS ?= 4
# More arguments for pytest, as in: make test PYTEST_ARGS="-k fork -x"
PYTEST_ARGS ?=

# File systems for test-filesystems, such as LANES="smb 9p"; none: all that it knows, one after the other.
LANES ?=
# More arguments for it, as in: make test-filesystems FILESYSTEMS_ARGS="--quick"
FILESYSTEMS_ARGS ?=

# Releases of Debian for test-kernels, such as KERNELS="sid trixie"; none: all that it knows, newest first.
KERNELS ?=
# More arguments for it, as in: make test-kernels KERNELS_ARGS="--rounds 10000 --limit 7200"
KERNELS_ARGS ?=

# How long campaign and simulate (3600), storm-joblib (60) and the benchmarks take, about, in seconds.
DURATION ?=
# The number that all choices of campaign and simulate follow from.
SEED ?= 1
# More arguments for campaign, as in: make campaign CAMPAIGN_ARGS="--clients 4 --lease 12 --keep history"
CAMPAIGN_ARGS ?=
# What test-wheel installs the packages with, as in: make test-wheel INTERPRETERS="python3.11 python3.14t"
INTERPRETERS ?= $(PYTHON)
# Where `make conda` takes packages from: a channel of conda, or `pip`.
CHANNEL ?= conda-forge
# QUICK=1 only sees that the benchmarks work.
QUICK ?=
# More arguments for them, as in: make bench BENCH_ARGS="--only storm,growth --dir /data"
BENCH_ARGS ?=
override BENCH_ARGS += $(if $(DURATION),--duration $(DURATION)) $(if $(QUICK),--quick)

# Tests start Python thousands of times, so what was compiled once is kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := python -m pip --disable-pip-version-check --quiet
# What a lock file names and nothing else. Packages that exist as source only are built by those of requirements/build.txt.
PINNED := --require-hashes --no-build-isolation --requirement requirements

# How often `make test-snakemake` replaces a file that others read.
REWRITES ?= 200

# Releases of Snakemake that `make test-snakemake-versions` takes, beside the newest one, which `make test` takes.
SNAKEMAKE_VERSIONS ?= 9.1.2 9.13.0

# What `make test` runs: those of the suites without needs that are there.
SUITES := $(wildcard tests/unit tests/adapters tests/simulation)

# A PYTHON that was asked for is used or refused; otherwise newer names are tried when python3 is too old.
ifeq ($(origin PYTHON),file)
CANDIDATES := $(PYTHON) python3.14 python3.13 python3.12 python3.11
else
CANDIDATES := $(PYTHON)
endif

# Two makes at once (two terminals, or -j) take turns in setting up. Where there is no flock(1) they do not.
TAKE_TURNS := if command -v flock >/dev/null 2>&1; then exec 9>.venv.lock; flock 9; fi

.DEFAULT_GOAL := help
.PHONY: help setup lock demo example-joblib example-dask example-permits test coverage test-newest test-oldest \
    test-snakemake test-snakemake-versions test-dask-zarr2 test-recipes test-docs test-slurm test-nfs test-nfs-long \
    test-filesystems test-kernels simulate exhaustive mutants \
    campaign storm-joblib storm-prune \
    bench bench-nfs lint format docs build test-wheel conda clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-23s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.dev ## the environment .venv with everything for development in it

lock: ## renew the lock files in requirements/, which say what the other targets install
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/$(PIP) install --upgrade uv
	requirements/renew .venv-lock/bin/uv

demo: .venv/.dev ## a genome index shared by jobs that are killed, and by Snakemake workflows (under two minutes)
	$(BIN)/python examples/demo/run.py
	$(BIN)/python examples/snakemake/run.py

test-snakemake-versions: ## the tests of the adapter for Snakemake with older releases (an environment each; five minutes)
	PYTHON=$(PYTHON) tests/adapters/snakemake_versions $(SNAKEMAKE_VERSIONS)

test-snakemake: .venv/.dev ## locked Snakemake workflows: 200 rewrites of a file, 200 of a directory, or REWRITES=n (half an hour)
	NFSRWLOCK_TEST_REWRITES=$(REWRITES) $(BIN)/python -m pytest tests/adapters/test_snakemake_outputs.py \
	    -k never_see --timeout 1800 $(PYTEST_ARGS)

test-dask-zarr2: .venv-zarr2/.dev ## the adapter for Dask with zarr 2, in an environment of its own
	.venv-zarr2/bin/python -m pytest tests/adapters/dask_zarr2.py $(PYTEST_ARGS)

test-recipes: .venv-recipes/.dev ## the recipes of docs/recipes with their libraries and engines, in an environment of its own
	.venv-recipes/bin/python -m pytest tests/adapters/recipes.py --timeout 600 $(PYTEST_ARGS)

example-joblib: .venv/.dev ## three programs share a joblib cache, one is killed: nothing is computed twice
	$(BIN)/python examples/joblib/run.py

example-permits: .venv/.dev ## twelve jobs of three workflows share four permits, one is killed
	$(BIN)/python examples/permits/run.py

example-dask: .venv/.dev ## many tasks of a Dask cluster update one file; a worker is killed
	$(BIN)/python examples/dask/run.py

# $(call pytest,ENVIRONMENT,MARKS): the suites without needs. First the tests that mind others beside them: one process
# compiles all modules then, and not each of many. It is an error (5) if nothing is selected, but not in one part.
define pytest
@part() { $(1)/bin/python -m pytest --durations 10 $(SUITES) "$$@" $(PYTEST_ARGS) || return $$?; }; \
part -m "alone$(2)"; alone=$$?; \
part -n $(PYTEST_WORKERS) --dist worksteal -m "not alone$(2)"; many=$$?; \
case $$alone in 0) exit $$(($$many == 5 ? 0 : $$many)) ;; 5) exit $$many ;; *) exit $$alone ;; esac
endef

test: lint ## lint, then every test that needs neither root nor NFS
	$(call pytest,.venv, and not peers)

coverage: .venv/.coverage ## how much of src the tests without needs execute, subprocesses included (half an hour)
	@mkdir -p build/coverage && rm -rf build/coverage/*; \
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	trap 'rm -f "$$site/measured.pth" "$$site/measured.py"' EXIT; \
	cp tests/measured.py "$$site" && echo 'import measured' >"$$site/measured.pth"; \
	measured() { $(BIN)/python -m coverage "$$@"; }; \
	measured run -m pytest -q -n $(PYTEST_WORKERS) --dist worksteal -m "not alone and not peers" $(SUITES) $(PYTEST_ARGS); \
	tests=$$?; \
	measured combine --quiet; measured html --quiet --directory build/coverage/html; measured report && exit $$tests

test-newest: .venv-newest/.dev ## the tests with the newest release of everything, and those that compare with other locks
	$(call pytest,.venv-newest)

test-oldest: .venv-oldest/.dev ## the tests with the oldest releases that pyproject.toml allows
	$(call pytest,.venv-oldest, and not peers)

test-slurm: .venv/.slurm ## locked Snakemake workflows on a real Slurm with two nodes (root; under four minutes)
	$(BIN)/python tests/slurm/cluster.py install
	$(BIN)/python -m pytest tests/slurm -n $(CLUSTERS) --dist worksteal --timeout 300 --durations 10 $(PYTEST_ARGS)

test-nfs: .venv/.dev ## a cluster of kernels with a real NFS server, under faults (root; about seven minutes)
	$(BIN)/python tests/nfs/lab install
	$(BIN)/python -m pytest tests/nfs -n $(LABS) --dist loadfile --durations 10 $(PYTEST_ARGS)

test-nfs-long: .venv/.dev ## the same scenarios of server outages, with one of five minutes (root; about ten minutes)
	$(BIN)/python tests/nfs/lab install
	NFSRWLOCK_TEST_OUTAGE_S=300 $(BIN)/python -m pytest tests/nfs/test_server_outages.py -s $(PYTEST_ARGS)

test-filesystems: .venv/.dev ## every shared file system that can be had, or LANES="smb 9p"; writes their table (root; hours)
	$(BIN)/python tests/nfs/lab install
	$(BIN)/python tests/nfs/filesystems --write $(FILESYSTEMS_ARGS) $(LANES)

test-kernels: .venv/.dev ## the NFS clients and servers of Debian's other kernels, or KERNELS="sid"; writes their table (root; an hour)
	$(BIN)/python tests/nfs/lab install
	$(BIN)/python tests/nfs/kernels --write $(KERNELS_ARGS) $(KERNELS)

simulate: .venv/.dev ## random runs on the simulated NFS for DURATION seconds, from the number SEED on
	$(BIN)/python tests/simulation/long.py --seconds $(or $(DURATION),3600) --seed $(SEED) --jobs $(PYTEST_WORKERS)

exhaustive: .venv/.dev ## every interleaving within larger bounds than in make test (about twelve minutes, up to 4 GB of memory)
	$(BIN)/python tests/simulation/thorough.py

mutants: .venv/.dev ## ways to break the protocol, and who finds each of them, after how many runs (some minutes)
	$(BIN)/python tests/simulation/table.py

campaign: .venv/.dev ## random faults on the NFS cluster for DURATION seconds, by SEED; what was held is judged (root)
	$(BIN)/python tests/nfs/lab install
	$(BIN)/python tests/nfs/campaign --seconds $(or $(DURATION),3600) --seed $(SEED) $(CAMPAIGN_ARGS)

storm-joblib: .venv/.dev ## readers of a joblib store beside those who clear it, for DURATION seconds
	$(BIN)/python tests/adapters/joblib_storm.py --seconds $(or $(DURATION),60)

storm-prune: .venv/.dev ## eight processes use a lock whose directory is pruned all the time, for DURATION seconds
	$(BIN)/python tests/unit/pruning_storm.py --seconds $(or $(DURATION),60)

bench: .venv/.bench ## this lock beside others, locally (DURATION=s, or QUICK=1 for a glance)
	$(BIN)/python benchmarks local $(BENCH_ARGS)

bench-nfs: .venv/.bench ## the same on a cluster of kernels with an NFS server; brings docs/benchmarks up to date (root)
	$(BIN)/python tests/nfs/lab install
	$(BIN)/python benchmarks nfs $(if $(QUICK),,--out docs/benchmarks --readme README.md) $(BENCH_ARGS)

lint: .venv/.dev ## ruff, mypy, and the rules about imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: .venv/.dev ## let ruff format the sources
	$(BIN)/ruff check --fix-only --exit-zero --quiet .
	$(BIN)/ruff format .

docs: .venv/.docs ## the documentation, in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "see docs/_build/html/index.html"

test-docs: docs ## all pages in a real browser, on a desk and a phone: links, pictures, overflow (four minutes; Chromium)
	$(BIN)/python tests/browse.py

build: .venv/.dev ## wheel and source distribution, and the packages of Snakemake's plugins, in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	for plugin in packaging/snakemake-*; do $(BIN)/python -m build --no-isolation --outdir dist --wheel $$plugin || exit; done

test-wheel: build ## wheel and source distribution, in fresh environments of INTERPRETERS, pass the tests of what they bring
	PYTEST_WORKERS=$(PYTEST_WORKERS) tests/wheel "$(INTERPRETERS)" $(PYTEST_ARGS)

conda: .venv/.conda ## the conda package, in build/conda, and its tests; from conda-forge, or CHANNEL=pip
	$(BIN)/python packaging/conda/build.py --channel $(CHANNEL)

clean: ## remove what the other targets made, but not .venv
	rm -rf build dist docs/_build demo-timeline.svg .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .venv -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## remove the environments too
	rm -rf .venv .venv-* .venv.lock

# Each candidate is run, because a name on PATH may be a version manager's shim for a version that is not selected.
define find_python
found=; tried=; \
for python in $(CANDIDATES); do \
    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
    then found=$$python; break; fi; \
    tried="$$tried $$python ($$version)"; \
done; \
if [ -z "$$found" ]; then \
    echo "nfsrwlock needs Python 3.11 or newer with venv and ensurepip; found:$${tried:- none of $(CANDIDATES)}." >&2; \
    echo "Install one (on Debian and Ubuntu also python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
    exit 1; \
fi
endef

# $(call set_up,PACKAGES): an environment from scratch, for what is left of an older one is in no lock file.
# Python compiles what it imports: to compile all of it would take as long as to install it.
define set_up
@set -eu; $(TAKE_TURNS); \
if [ $@ -nt pyproject.toml ] && [ $@ -nt $< ]; then exit 0; fi; \
$(find_python); \
echo "setting up $(@D) with $$found ($$version)"; \
"$$found" -m venv --clear $(@D); \
$(@D)/bin/$(PIP) install $(1); \
$(@D)/bin/$(PIP) install --no-compile $(2); \
touch $@
endef
PINNED_AND_THIS = $(PINNED)/$(1).txt; $(@D)/bin/$(PIP) install --no-deps --no-build-isolation --editable .

.venv/.dev: requirements/dev.txt requirements/build.txt pyproject.toml
	$(call set_up,$(PINNED)/build.txt,$(call PINNED_AND_THIS,dev))

.venv-oldest/.dev: requirements/oldest.txt requirements/build.txt pyproject.toml
	$(call set_up,$(PINNED)/build.txt,$(call PINNED_AND_THIS,oldest))

.venv-zarr2/.dev: requirements/zarr2.txt requirements/build.txt pyproject.toml
	$(call set_up,$(PINNED)/build.txt,$(call PINNED_AND_THIS,zarr2))

.venv-recipes/.dev: requirements/recipes.txt requirements/build.txt pyproject.toml
	$(call set_up,$(PINNED)/build.txt,$(call PINNED_AND_THIS,recipes))

# Made anew each time, for what was the newest yesterday may not be today. Dependency groups need pip 25.1.
.PHONY: .venv-newest/.dev
.venv-newest/.dev: pyproject.toml
	@rm -f $@
	$(call set_up,--upgrade 'pip>=25.1',--upgrade --group dev --editable .)

.venv/.bench .venv/.slurm .venv/.docs .venv/.coverage .venv/.conda: .venv/.%: requirements/%.txt .venv/.dev
	@set -eu; $(TAKE_TURNS); \
	if [ $@ -nt $< ] && [ $@ -nt .venv/.dev ]; then exit 0; fi; \
	echo "adding requirements/$*.txt to .venv"; \
	$(BIN)/$(PIP) install $(PINNED)/$*.txt; \
	touch $@
