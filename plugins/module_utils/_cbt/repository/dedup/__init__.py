# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds blocks that are already stored.

dedup.py looks up each block: in this run, in packs that the parent uses, and in packs with a matching hook. index.py
keeps the hooks of all packs in local files of this host, and segments.py has the format of these files. The index is a
cache. If it is lost, old or wrong, that costs space, never correctness: a match counts only after the directory of the
pack has been read.

Neighbours: sharing/ knows which packs are condemned, records/ knows which are damaged. operations/point looks up every
block that it reads.
"""
