# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore point while it is made, and the parts of one that several verbs read.

new_point.py makes a point: it reads disks, keeps files, and publishes. disk_reader.py reads a disk with several
workers and builds its map, and audit.py finds changes that were not marked. portion.py handles one portion: blocks
that are zero, equal to the parent, stored elsewhere or new. parent_blocks.py answers what the parent holds, point_source.py reads a stored disk as if it were a
disk of a domain, machine_files.py splits the files beside the disks into pieces.

Neighbours: backup and copy make points, restore reads them. dedup/ finds blocks that are stored, packs/ stores the
others, and sharing/ publishes.
"""
