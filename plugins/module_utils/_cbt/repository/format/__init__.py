# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The format of a repository as code, without I/O.

names.py alone defines the grammar of object names. envelope.py wraps JSON objects with magic, version and checksum.
configuration.py, manifests.py, maps.py, packs.py and hooks.py each encode and decode one kind of object. map_changes.py
compares two maps. codecs.py compresses blocks; zstd.py is the binding to the Zstandard module that is installed.
Decoded values are checked: any field may hold anything in a repository that others can write to.

Neighbours: crypto/ for ids and seals. docs/repository-format.md is the specification. Change both together.
"""
