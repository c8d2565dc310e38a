# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detects that a repository was replaced, or went back to an older state.

memory.py compares a repository with the observations of earlier runs, and keeps those of this run.
known_repositories.py decides, and is pure. host_state.py keeps the files, safe beside other runs and other users.

Neighbours: modules give a Memory to repository/ when they open one. sharing/ has the record of removed restore points,
which distinguishes retention from loss.
"""
