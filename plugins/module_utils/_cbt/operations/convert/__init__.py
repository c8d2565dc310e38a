# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converts images that cannot be tracked to qcow2 version 3.

convert.py is the verb. plan.py decides between amending, converting at rest and copying below a running guest.
run.py carries it out, proof.py compares the result with the original before the original goes. The original is kept
until the comparison has succeeded and the domain has been seen running on the result. A marker beside the new image
names the original until then, so that a later run can finish or undo what was interrupted.

Neighbours: hypervisor/ and images/. This verb uses no repository.
"""
