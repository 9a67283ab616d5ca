# Two commands are enough: `make demo` and `make test`. Each sets up all it needs; only Python >= 3.11 and a network must
# be there. PYTHON=... chooses the interpreter, ARGS=... is passed on.

RUN := .venv/bin/python
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder
PARTS := registry envoy wat filters kubernetes istio helm prometheus

.PHONY: demo test chaos fuzz bench bench-docs unit pythons lint format reference docs manifests dashboards picture venv parts help

help: ## what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: venv ## the main job on real parts, told step by step (ARGS=--keep leaves it running)
	@$(RUN) -m examples.demo $(ARGS)

test: venv parts ## all tests, on real parts
	$(RUN) -m pytest $(PARALLEL) $(ARGS)

chaos: venv parts ## the rows of the fault suite that take long
	$(RUN) -m pytest -m chaos $(PARALLEL) tests/chaos $(ARGS)

fuzz: venv ## look for input that our readers do not expect (SECONDS=20 for each target, ARGS=TARGET)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --group fuzz
	$(RUN) -m tests.fuzz --seconds $(or $(SECONDS),20) $(ARGS)

bench: venv ## figures beside rivals' (ONLY=serve,herd SIZE=small REPEATS=3 OUT=DIR)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --group bench
	$(RUN) -m tests.bench

bench-docs: venv ## put the figures that `make bench` left into docs/performance.md
	@$(RUN) -m pip install --quiet --disable-pip-version-check --group bench
	$(RUN) -m docs.performance
	$(RUN) -m docs.capacity

unit: venv ## the quick ones only
	$(RUN) -m pytest tests/unit tests/property $(ARGS)

pythons: venv parts ## the quick ones on every other Python that the project claims, and integration on the image's (ARGS="3.13 3.14")
	$(RUN) -m tests.pythons --jobs $(JOBS) $(ARGS)

lint: venv ## everything that reads the code without running it
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/codespell

format: venv ## put the code into its form
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

reference: venv ## write the pages anew that come from the code: command line, metrics, fields, reasons
	$(RUN) -m docs.reference

docs: venv ## the site, into build/site
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

dashboards: venv ## write the Grafana dashboard and Prometheus' rules anew
	$(RUN) -m dashboards

picture: venv parts ## draw docs/pictures/dashboard.svg from a run of the alerts' test
	AUTOWASM_PICTURE=docs/pictures/dashboard.svg $(RUN) -m pytest -m chaos tests/chaos/test_alerts.py

manifests: venv ## write what chart and manifests have in common anew
	$(RUN) -m docs.manifests

venv:
	@PYTHON=$(PYTHON) sh .ci/venv

parts: venv
	@$(RUN) -m tests.parts.provision $(PARTS)
