# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random access to the disks of a restore point.

disk_view.py reads any range of one disk. block_cache.py keeps decoded blocks in memory, for small requests.
pack_cache.py keeps parts of packs on a local disk, for a repository that is far away.

Neighbours: packs/ reads and proves blocks; operations/export/ serves the views to NBD clients.
"""
