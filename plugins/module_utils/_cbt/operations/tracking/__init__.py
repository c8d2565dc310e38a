# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Switches changed block tracking on and off, and keeps it consistent.

tracking.py adds and removes checkpoints. reconcile.py compares the checkpoints of libvirt, the bitmaps in the images
and the restore points, and removes checkpoints that no backup can build on. changed_blocks.py lists the ranges of a
disk that changed since a restore point. capability.py sets the switch for incremental backup that libvirt 7.0 to 7.5
needs in a definition.

Neighbours: backup/ for the facts about a domain and for the decision whether a bitmap can be trusted; point/ for the
blocks of a restore point.
"""
