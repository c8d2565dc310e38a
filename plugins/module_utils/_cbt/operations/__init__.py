# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that a user can ask for; here hypervisor, blocks and repository meet.

A verb has a folder: backup, convert, restore, tracking, upkeep (retention, compaction and healing) and verify. Verbs of
one file are in this folder: copy.py, domains.py, info.py, keys.py and repository_status.py. point/ is no verb; backup
and copy build a restore point with it, and restore reads one.

A verb that changes something takes a frozen request, gathers facts, decides with a pure function, and carries the
decision out.

Neighbours: modules call one verb each. tracking uses backup; backup and copy use point and upkeep; restore uses point.
"""
