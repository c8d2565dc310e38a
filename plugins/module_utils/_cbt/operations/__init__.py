# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that a user can ask for. Only here do hypervisor, blocks and repository meet.

A verb has a folder: backup, convert, restore, tracking, upkeep (retention, compaction and healing) and verify. Verbs
that need only one file are directly here: copy.py, domains.py, info.py, keys.py and repository_status.py. point/ is not
a verb. It creates restore points for backup and copy, and reads them for restore and tracking.

A verb that changes something takes an immutable request, gathers facts, decides with a pure function, and carries the
decision out.

Neighbours: modules call one verb each. backup and copy use point and upkeep, restore uses point, and tracking uses
backup and point.
"""
