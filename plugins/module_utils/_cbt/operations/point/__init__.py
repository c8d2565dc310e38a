# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates restore points, and reads the parts that several verbs use.

new_point.py creates a point: it reads disks, stores files, and publishes. disk_reader.py reads a disk with several
workers and builds its map. audit.py finds changes that tracking did not mark. portion.py handles one portion: blocks
that are zero, equal to the parent, already in another pack, or new. parent_blocks.py returns the block ids of the
parent. point_source.py reads a stored disk like a disk of a domain. machine_files.py captures the files other than the
disks, in pieces.

Neighbours: backup and copy create points, restore reads them. dedup/ finds stored blocks, packs/ stores the others, and
sharing/ publishes.
"""
