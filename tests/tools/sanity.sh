#!/usr/bin/env bash
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs `ansible-test sanity` on a copy of the checkout, with the arguments given.

set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

# ansible-test fetches get-pip from the internet unless it is in its cache already. pip itself comes with Python.
cache="$HOME/.ansible/test/cache"
mkdir -p "$cache"
for name in get_pip_24_2.py get_pip_25_2.py; do
    [[ -e "$cache/$name" ]] || cp "$here/get_pip.py" "$cache/$name"
done

tree="$("$here/collection_tree.sh")"
PATH="$here/../../.venv/bin:$PATH"
cd "$tree"
exec ansible-test sanity --requirements --color no "$@"
