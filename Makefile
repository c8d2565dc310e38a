# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

.PHONY: help setup demo test bench lint clean

# Options for pytest, such as ARGS='-k restore'.
ARGS ?=

help: ## Tell what can be made
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

setup: ## Install what is missing: Debian packages, and .venv with what PyPI has
	@tests/tools/install.sh
	@tests/tools/environment.sh

demo: setup ## Back up a small real guest, restore it and prove it equal
	@.venv/bin/python tests/demo/demo.py

test: setup ## Run every test
	@.venv/bin/python -m pytest $(ARGS) tests/unit tests/integration

bench: setup ## Measure against other tools, side by side
	@tests/tools/install.sh virtnbdbackup
	@tests/tools/environment.sh
	@/usr/bin/python3 tests/benchmarks/bench.py
	@/usr/bin/python3 tests/benchmarks/churn.py
	@/usr/bin/python3 tests/benchmarks/many_packs.py

lint: setup ## Run all static checks
	@tests/tools/install.sh shellcheck
	@tests/tools/lint.sh

clean: ## Remove what the other targets made here
	@rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .venv
