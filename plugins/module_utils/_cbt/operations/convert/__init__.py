# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converts images that cannot be tracked to qcow2 version 3.

convert.py is the verb. plan.py decides between amending, converting at rest and copying under a running guest. run.py
carries it out. It compares the new image with the original; proof.py does so for a copy under a running guest. The
original is kept until the comparison has succeeded and the domain has been seen running on the new image. Until then a
marker beside the new image names the original, so that a later run can finish or undo an interrupted conversion.

Neighbours: hypervisor/ and images/. This verb uses no repository.
"""
