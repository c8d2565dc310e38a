# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writers and collectors on one repository at the same time, without locks.

A writer holds a lease (leases.py), and publishes a manifest only after it has made sure that no object it names is
about to be deleted (publishing.py, wholeness.py). A collector surveys what restore points need (survey.py), condemns
the rest (condemned.py), waits for the grace period and deletes (collector.py). Removed restore points go to the trash
(trash.py), and removals.py records them permanently. relocation.py moves restore points to other copies of their
blocks. holds.py keeps restore points from which a machine is served, and holding.py takes and ends such holds.

The order of requests makes this safe, not the clocks: see "Sharing a repository" in docs/repository-format.md. Tests
run the real code step by step in every order.

Neighbours: repository.py below, dedup/ and memory/ above.
"""
