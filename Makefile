# SPDX-License-Identifier: GPL-2.0-only
#
# Every target does its own set-up: system packages (as root or with passwordless
# sudo; else it prints the line to run) and a virtual environment in .venv.

PYTHON ?= python3
EXPERIMENT ?= experiments/reclaim-capture.yaml
ARGS ?=
RUN = .venv/bin/testbed
# On all cores, each of which takes work over from another that has more left.
PYTEST = .venv/bin/pytest --numprocesses auto --dist worksteal
COMPILE = .venv/bin/pip-compile pyproject.toml --quiet --upgrade --generate-hashes --strip-extras \
	--allow-unsafe --all-build-deps --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.PHONY: compare lines verify bench repeat misses plants selfcheck test fire soak chaos lint unit docs-check doctor dist setup \
	setup-dev lock clean

compare: setup ## The repository's own experiment: patched against unpatched
	@$(RUN) compare $(EXPERIMENT) $(ARGS)

lines: setup ## All modes of the patch, on every kernel line that can be had here
	@$(RUN) compare experiments/modes.yaml --line all $(ARGS)

verify: setup ## Run the trials of the published result again: the same bytes?
	@$(RUN) verify $(EXPERIMENT:.yaml=.manifest.json) $(ARGS)

bench: setup ## The noise of every metric in both modes, and what a trial costs
	@.venv/bin/python -m tests.bench

repeat: setup ## One trial 30 times, and 10 shapes of guests 5 times each: the same bytes?
	@.venv/bin/python -m tests.repeat

misses: setup ## Each miss of a published trial, read from outside the guest: is its class right?
	@.venv/bin/python -m tests.misses $(EXPERIMENT) $(ARGS)

plants: setup-dev ## Functions made slower on purpose: does a profile name each of them first?
	@.venv/bin/python -m tests.plants $(ARGS)

selfcheck: setup ## How often comparisons that have nothing to find find something
	@$(RUN) selfcheck $(ARGS)

test: setup-dev lint ## All tests but those under fire; builds kernels and boots guests
	@$(PYTEST) -m "not fire" $(ARGS)

fire: setup-dev ## The patch's correctness on debug kernels
	@.venv/bin/pytest -m fire $(ARGS)

soak: setup-dev ## The patch under fire for 10 minutes in each mode, then a million captures
	@.venv/bin/python -m tests.soak $(ARGS)

chaos: setup-dev ## An hour of kills, full disks and hostile inputs: is anything lost, or left behind?
	@.venv/bin/python -m tests.chaos $(ARGS)

unit: setup-dev lint ## The tests that need no kernel
	@$(PYTEST) -m "not guest" $(ARGS)

lint: setup-dev
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

docs-check: setup-dev ## Every command that README.md and docs/ show: does it print what they say?
	@.venv/bin/python -m tests.listings $(ARGS)

doctor: setup ## What this machine lacks
	@$(RUN) doctor

dist: setup-dev ## The package, as sdist and wheel; pip installs what is in dist/
	@.venv/bin/python -m build --no-isolation

setup:
	@$(PYTHON) -m testbed.setup.bootstrap

setup-dev:
	@$(PYTHON) -m testbed.setup.bootstrap --dev

lock: setup-dev ## Pin the newest versions of all Python packages
	@$(COMPILE) --output-file requirements.txt
	@$(COMPILE) --output-file requirements-dev.txt --extra dev --constraint requirements.txt

clean: ## Forget .venv and test leftovers; results and the cache stay
	rm -rf .venv dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
