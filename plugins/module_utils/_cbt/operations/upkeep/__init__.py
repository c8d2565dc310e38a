# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a repository small and sound.

retention.py is the verb: it removes restore points, brings removed ones back, and reclaims space. retention_plan.py
decides on each restore point, by the rules of retention_rules.py, by holds, and by locks of the store. compaction.py
plans which sparse packs to empty, and copies their live blocks into new packs. merging.py merges blocks that are stored
twice. live_blocks.py computes which blocks restore points name. healing.py repairs restore points with sound copies of
damaged blocks. Check mode prints the plans that a run carries out.

Neighbours: repository/sharing collects and relocates beside running writers. backup and copy call healing. This verb
uses neither hypervisor/ nor blocks/.
"""
