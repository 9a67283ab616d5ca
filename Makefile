# Two commands are enough: `make demo` and `make test`. Each sets up all it needs; only Python >= 3.11 and a network must
# be there. PYTHON=... chooses the interpreter, ARGS=... is passed on.

RUN := .venv/bin/python
PARTS := registry envoy wat kubernetes istio helm prometheus

.PHONY: demo test chaos bench unit lint format reference manifests venv parts help

help: ## what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

demo: venv ## the main job on real parts, told step by step (ARGS=--keep leaves it running)
	@$(RUN) -m examples.demo $(ARGS)

test: venv parts ## all tests, on real parts
	$(RUN) -m pytest $(ARGS)

chaos: venv parts ## the rows of the fault suite that take long
	$(RUN) -m pytest -m chaos tests/chaos $(ARGS)

bench: venv parts ## figures beside a rival's (ONLY=reconcile SIZE=1000 REPEATS=3)
	$(RUN) -m tests.bench

unit: venv ## the quick ones only
	$(RUN) -m pytest tests/unit tests/property $(ARGS)

lint: venv ## everything that reads the code without running it
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/codespell

format: venv ## put the code into its form
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

reference: venv ## write docs/cli.md anew
	$(RUN) -m docs.reference

manifests: venv ## write what chart and manifests have in common anew
	$(RUN) -m docs.manifests

venv:
	@PYTHON=$(PYTHON) sh .ci/venv

parts: venv
	@$(RUN) -m tests.parts.provision $(PARTS)
