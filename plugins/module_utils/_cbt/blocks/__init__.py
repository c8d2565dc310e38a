# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks of a disk on their way in and out.

extents.py is pure arithmetic: where a disk changed, where it reads as zero, and which blocks that makes. source.py
is the interface of a disk that is read; nbd.py has it over an NBD export. nbd_target.py writes to an export.
throttle.py limits the rate.

Neighbours: this package knows neither libvirt nor a repository. The verbs in operations/ connect an export of
hypervisor/ with a reader here, and give what is read to repository/.
"""
