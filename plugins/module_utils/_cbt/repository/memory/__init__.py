# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host knows of a repository, to detect another one in its place or one that went back.

memory.py compares a repository with what earlier runs saw, and keeps what this run sees. known_repositories.py
decides, and is pure. host_state.py keeps the files safely beside other runs and other users.

Neighbours: modules give a Memory to repository/ when they open one. sharing/ has the record of restore points that
were removed, which distinguishes retention from loss.
"""
