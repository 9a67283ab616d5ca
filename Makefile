# Two commands are enough: `make demo` and `make test`. Each sets up all it needs; only Python >= 3.11 and a network must
# be there. PYTHON=... chooses the interpreter, ARGS=... is passed on. LOCKED=1 installs what uv.lock names (needs uv).

RUN := .venv/bin/python
# Real parts are waited for more than computed with: more workers than cores keep the cores busy.
CORES := $(shell getconf _NPROCESSORS_ONLN)
JOBS ?= $(shell expr 3 '*' $(CORES))
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder
# With COVERAGE=1, every process that runs our code is measured, on the Python that does it best (`make coverage-report` shows
# the result).
MEASURING = $$($(RUN) -m tests.pythons --measuring)
PYTEST = $(if $(COVERAGE),$(MEASURING),$(RUN)) -m pytest
MEASURED := $(if $(COVERAGE),COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml COVERAGE_FILE=$(CURDIR)/build/coverage/data)
PARTS := registry envoy wat filters kubernetes istio helm prometheus
UV := .venv/bin/uv

.PHONY: demo test chaos versions coverage coverage-report durations fuzz mutants codepaths bench bench-docs unit pythons instructions lint format lock dist reference docs manifests dashboards picture venv parts help

help: ## what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo "The tests, and how to run one of each kind: tests/README.md"

demo: venv ## the main job on real parts, told step by step (ARGS=--keep leaves it running)
	@$(RUN) -m tests.demo $(ARGS)

test: venv build/coverage ## all tests, on real parts
	$(MEASURED) $(PYTEST) $(PARALLEL) $(ARGS)

chaos: venv build/coverage ## the rows of the fault suite that take long
	$(MEASURED) $(PYTEST) -m chaos $(PARALLEL) tests/chaos $(ARGS)

versions: venv build/coverage ## the acceptance chain on the oldest and the newest Kubernetes, Istio and Envoy that can be had
	$(MEASURED) $(PYTEST) -m versions -n $(JOBS) --dist loadgroup tests/versions $(ARGS)

coverage: ## all tests, and which lines and branches of src none of them executes
	rm -rf build/coverage
	$(MAKE) test COVERAGE=1; tests=$$?; $(MAKE) coverage-report; exit $$tests

coverage-report: venv ## what runs with COVERAGE=1 executed: the terminal's report, and pages in build/coverage/html
	$(MEASURING) -m coverage combine --quiet --append --data-file=build/coverage/data build/coverage
	$(MEASURING) -m coverage html --quiet --data-file=build/coverage/data
	$(MEASURING) -m coverage report --data-file=build/coverage/data

build/coverage:
	@mkdir -p $@

durations: venv parts ## all tests, and record what each file takes: `make test` starts the longest first
	$(RUN) -m pytest $(PARALLEL) --record-durations $(ARGS)

fuzz: venv ## look for input that our readers do not expect (SECONDS=20 for each target, ARGS=TARGET)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --group fuzz
	$(RUN) -m tests.hostile.fuzz --seconds $(or $(SECONDS),20) $(ARGS)

mutants: venv ## change the modules whose bugs cost most, and expect a test to fail (MODULES="decision ranges", ALL=1, BASE=COMMIT)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --group mutants
	$(RUN) -m tests.mutants $(if $(BASE),--base $(BASE)) $(ARGS) $(if $(ALL),all,$(MODULES))

bench: venv ## figures beside rivals' (ONLY=serve,herd SIZE=small REPEATS=3 OUT=DIR)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --group bench
	$(RUN) -m tests.bench

bench-docs: venv ## put the figures that `make bench` left into docs/performance.md and docs/comparison.md
	@$(RUN) -m pip install --quiet --disable-pip-version-check --group bench
	$(RUN) -m tools.generate.performance
	$(RUN) -m tools.generate.rivals
	$(RUN) -m tools.generate.capacity

codepaths: venv ## how many files of src a new AutoWasm, a missing module and `wasmc push` pass through
	$(RUN) -m tests.codepaths

# They compute more than they wait.
unit: JOBS = $(shell expr 2 '*' $(CORES))
unit: venv ## the quick ones only, with fewer generated examples than in `make test`
	$(RUN) -m pytest $(PARALLEL) --hypothesis-profile=quick tests/unit tests/property $(ARGS)

instructions: venv ## bytecode instructions of fixed work, beside those of the tree (ARGS=--record writes them)
	$(RUN) -m tests.instructions $(ARGS)

# Without parts to wait for.
pythons: JOBS = $(shell expr 3 '*' $(CORES))
pythons: venv ## the quick ones on every other Python that the project claims, and integration on the image's (ARGS="3.13 3.14")
	$(RUN) -m tests.pythons --jobs $(JOBS) $(ARGS)

lint: venv ## everything that reads the code without running it
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/codespell
	$(UV) lock --check --quiet
	$(EXPORT) --no-default-groups | cmp - requirements.txt
	$(EXPORT) --only-group build | cmp - requirements-build.txt
	.venv/bin/shellcheck .ci/run .ci/venv .ci/chart-index
	.venv/bin/zizmor --offline --no-progress --quiet --pedantic .github
	@$(RUN) -m tests.parts.provision actionlint
	PATH="$(CURDIR)/.venv/bin:$$PATH" $$($(RUN) -c 'from tests.parts import provision; print(provision.actionlint())')

format: venv ## put the code into its form
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

# Of uv.lock, for pip, with hashes: what the image needs, and what builds the wheel.
EXPORT = $(UV) export --quiet --frozen --no-emit-project --no-annotate --no-header

lock: venv ## renew uv.lock within the bounds of pyproject.toml (ARGS="--upgrade-package NAME"), and requirements*.txt from it
	$(UV) lock $(ARGS)
	$(EXPORT) --no-default-groups --output-file requirements.txt
	$(EXPORT) --only-group build --output-file requirements-build.txt

dist: venv ## wheel, source distribution, and wasmc as a single file, into build/dist
	$(RUN) -m tools.release.dist build/dist

reference: venv ## regenerate the pages that come from the code: command line, metrics, fields, reasons
	$(RUN) -m tools.generate.reference

docs: venv ## the site, into build/site
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

dashboards: venv ## regenerate the Grafana dashboard and Prometheus' rules
	$(RUN) -m tools.generate.dashboards

picture: venv ## draw docs/pictures/dashboard.svg from a run of the faults that alerts report
	@mkdir -p build
	$(RUN) -m tools.generate.dashboards.picture build/picture.json docs/pictures/dashboard.svg

manifests: venv ## regenerate the common parts of chart and manifests
	$(RUN) -m tools.generate.manifests

venv:
	@PYTHON=$(PYTHON) LOCKED=$(LOCKED) sh .ci/venv

parts: venv ## all real parts, ahead of time: every other target gets those that it lacks
	@$(RUN) -m tests.parts.provision $(PARTS)
