# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backs up a domain.

backup.py is the verb. preparation.py checks whether the domain can be backed up, and clears leftovers of killed runs.
situation.py gathers the facts: the domain, its checkpoints, the restore points and known damage. plan.py is pure. It
decides from these facts how each disk is read: in full, by its bitmap, by comparing all blocks, or not at all; each
decision has a reason for the user. run.py carries the plan out in a view from frozen_view.py, which transport.py makes
reachable over a Unix socket or over TCP. spot_check.py reads a few blocks that QEMU reports as unchanged and compares
them with the parent restore point. result.py is the outcome.

Neighbours: point/ stores what is read, upkeep/ heals damage with it, hypervisor/ freezes the guest and serves the
disks.
"""
