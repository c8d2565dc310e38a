#!/usr/bin/env bash
# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Copies the checkout to FOLDER/ansible_collections/kvm/cbt and prints that path: collection_tree.sh [FOLDER]
# FOLDER is .cache/collections unless it is named.
#
# Ansible finds a collection, and ansible-test runs, only in a folder of that name, and ansible-test follows no link to it.

set -euo pipefail
folder="$(realpath --canonicalize-missing "${1:-$(dirname "$0")/../../.cache/collections}")"
cd "$(dirname "$0")/../.."

tree="$folder/ansible_collections/kvm/cbt"
mkdir -p "$(dirname "$tree")"
exec 9>"$folder/lock"
flock 9

rm -rf "$tree.new"
mkdir "$tree.new"
# The checkout may belong to another user than root, which git takes for dubious.
git -c safe.directory="$PWD" ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
        # A file that was removed but not yet from the index is not there.
        if [[ -e "$file" || -L "$file" ]]; then
            printf '%s\0' "$file"
        fi
    done |
    tar --create --null --files-from=- | tar --extract --no-same-owner --directory "$tree.new"

# Without a repository of its own ansible-test would ask the one around it, which ignores this folder.
git init --quiet "$tree.new"
rm -rf "$tree"
mv "$tree.new" "$tree"
echo "$tree"
