# Every task installs what it needs itself; the machine needs Python 3.10 or newer, make and git.
.DEFAULT_GOAL := help
.PHONY: help install demo demo-end test test-fast docs locks catalogue screens golden check mutants bench fresh packages clean
PREFIX := /usr/local
PYTEST := .venv/bin/python -m pytest

help: ## List these tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: ## Install the tool on this host: sudo make install [PREFIX=/usr/local]
	@scripts/install $(PREFIX)

demo: .venv-ready machine-ready ## See a whole deployment in a throwaway systemd host (root); KEEP=1 leaves it running
	@.venv/bin/python -m scripts.demo $(if $(KEEP),--keep)

demo-end: .venv-ready ## End what `make demo KEEP=1` left running
	@.venv/bin/python -m scripts.end_machines

test: .venv-ready machine-ready ## Run every test (root): real systemd, real vLLM
	@$(PYTEST) --numprocesses=auto --no-loadscope-reorder --durations=0 --durations-min=20 $(ARGS)

test-fast: .venv-ready ## Run the tests that need no root
	@$(PYTEST) -m "not root" $(ARGS)

docs: .venv-ready ## Write the generated pages of docs/ anew
	@.venv/bin/python -m scripts.troubleshoot
	@.venv/bin/python -m scripts.gpu_faults
	@.venv/bin/python -m scripts.alerts
	@.venv/bin/python -m scripts.modules
	@.venv/bin/python -m scripts.dashboards
	@LC_ALL=C.UTF-8 .venv/bin/python -m scripts.reference

locks: .venv-ready ## Write the locks of vLLM and of the packages anew (asks the package index, minutes); look at the difference
	@.venv/bin/python -m scripts.locks

catalogue: .venv-ready ## Bring the translations in installer/locale up to date with the source
	@.venv/bin/python -m scripts.catalogue

golden: .venv-ready ## Write the golden files anew; look at the difference before you commit it
	@GOLDEN=write $(PYTEST) -q tests/units/test_render.py tests/units/test_gateway.py tests/spec/test_settings_file.py tests/model/test_models_doc.py -k golden

screens: .venv-ready machine-ready ## Render what the verbs show into docs/images/ (root)
	@.venv/bin/python -m scripts.screens $(ARGS)
	@.venv/bin/python -m scripts.pictures
	@.venv/bin/python -m scripts.speed

check: .venv-ready ## Lint, formatting, types and the layers of the house; what CI runs first
	@! git grep -nE '^(<<<<<<<|>>>>>>>) ' # a merge that was not ended
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/mypy scripts tests/kit/boot tests/conftest.py
	@.venv/bin/lint-imports --no-logo --no-cache

mutants: .venv-ready ## Break flow/, spec/ and units/ in 300 of thousands of ways, count what the fast tests notice
	@.venv/bin/python -m scripts.mutants $(ARGS)

bench: .venv-ready machine-ready ## Measure what the README claims (root)
	@scripts/host-packages bench
	@for bench in bench/*.py; do .venv/bin/python $$bench || exit 1; done

fresh: ## Prove `make demo` and `make test` on a Debian with nothing installed (root, debootstrap)
	@tests/fresh/debian

packages: .venv-ready ## Build .deb, .rpm, wheel and sdist into dist/, with what is in them and checksums
	@.venv/bin/python -m scripts.packages

clean: ## Remove everything these tasks made in the checkout
	@if [ -x .venv/bin/python ] && [ "$$(id -u)" = 0 ]; then .venv/bin/python -m scripts.end_machines; fi
	rm -rf .venv build dist mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: .venv-ready machine-ready
.venv-ready:
	@scripts/bootstrap
machine-ready:
	@scripts/host-packages machine
