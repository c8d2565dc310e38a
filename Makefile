# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

.PHONY: help setup demo test test-quick soak mutants bench lint clean

# Options for pytest, such as ARGS='-k restore'.
ARGS ?=

# What `make soak` repeats, each as often as tests/soaks.py says or as named here: SOAK='kills=500 storm'.
SOAK ?= all

# A process of tests on each core. Each has a libvirt of its own, which ends with it however it ends.
PYTEST = .venv/bin/python -m pytest --dist loadgroup --no-loadscope-reorder \
	--tx '$(shell nproc)*popen//python=tests/lab/isolated.sh .venv/bin/python'

help: ## Tell what can be made
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

setup: ## Install what is missing: Debian packages, and .venv with what PyPI has
	@tests/tools/install.sh
	@tests/tools/environment.sh

demo: setup ## Back up a small real guest, restore it and prove it equal
	@.venv/bin/python tests/demo/demo.py

test: setup ## Run every test
	@$(PYTEST) $(ARGS) tests/unit tests/integration

test-quick: setup ## Run the units with few examples, and one real round trip, in five minutes
	@$(PYTEST) --quick $(ARGS) tests/unit tests/integration/test_round_trip.py

soak: setup ## Repeat for long what a test run repeats a few times; choose with SOAK='kills=500 storm'
	@tests/lab/isolated.sh .venv/bin/python -m pytest -s -v --soak '$(SOAK)' $(ARGS) tests/unit tests/integration

mutants: setup ## Make faults in a copy of the checkout, and show which test notices each
	@.venv/bin/python tests/tools/mutants.py $(ARGS)

bench: setup ## Measure against other tools, side by side
	@tests/tools/install.sh virtnbdbackup
	@tests/tools/environment.sh
	@/usr/bin/python3 tests/benchmarks/bench.py
	@/usr/bin/python3 tests/benchmarks/churn.py
	@/usr/bin/python3 tests/benchmarks/many_packs.py
	@/usr/bin/python3 tests/benchmarks/exports.py

lint: setup ## Run all static checks
	@tests/tools/install.sh shellcheck
	@tests/tools/lint.sh

clean: ## Remove what the other targets made here
	@rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .venv
