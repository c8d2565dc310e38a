# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs: what a user can ask for. The only place where hypervisor, blocks and repository meet.

A verb has a folder: backup, convert, restore, tracking, upkeep (retention and what follows from it) and verify. A
verb of one file is here: copy.py, info.py, keys.py.
repository_status.py reports sizes, growth, damage and use of a repository.
point/ is no verb; backup and copy build a restore point with it, and restore reads one.

A verb that changes something takes a frozen request, gathers facts, decides with a pure function, and carries the
decision out.

Neighbours: modules call one verb each. tracking uses backup; backup and copy use point and upkeep; restore uses
point.
"""
