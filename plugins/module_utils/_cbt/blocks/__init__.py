# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads and writes the blocks of a disk.

extents.py is pure arithmetic: where a disk changed, where it reads as zero, and which blocks these ranges cover.
source.py defines the interface of a disk to read; nbd.py implements it over an NBD export. nbd_target.py writes to an
export. throttle.py limits the rate.

Neighbours: this package knows neither libvirt nor a repository. The verbs in operations/ connect an export of
hypervisor/ to a reader here, and pass the blocks to repository/.
"""
