#!/usr/bin/env bash
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# All static checks. Every check runs; those that failed are named at the end.

set -euo pipefail
cd "$(dirname "$0")/../.."

export PATH="$PWD/.venv/bin:$PATH"
checkout="$PWD"
tree="$(tests/tools/collection_tree.sh)"
collections="${tree%/ansible_collections/*}"
export ANSIBLE_COLLECTIONS_PATH="$collections"
export ANSIBLE_HOME="$checkout/.cache/ansible"
failed=()

check() {
    local name="$1"
    shift
    echo "=== $name"
    "$@" || failed+=("$name")
}

in_tree() {
    (cd "$tree" && "$@")
}

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "mypy" env --chdir="$collections" MYPYPATH="$collections" mypy --config-file "$checkout/.mypy.ini" \
    --cache-dir "$checkout/.mypy_cache" \
    ansible_collections/kvm/cbt/plugins/{action,filter,lookup,module_utils,modules,plugin_utils}
check "yamllint" yamllint --strict .
check "ansible-lint" in_tree ansible-lint
check "English" python tests/tools/english.py
check "changelog" antsibull-changelog lint
check "documentation" in_tree antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck \
    --validate-collection-refs=all --disallow-unknown-collection-refs .
check "ansible-test sanity" env -u ANSIBLE_HOME tests/tools/sanity.sh --python 3.11

if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'Failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "All checks passed."
