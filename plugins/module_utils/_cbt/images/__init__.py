# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Image files, independent of any domain.

qemu_img.py runs qemu-img on images and backing chains. image_files.py describes, creates, converts and compares images.
The format of an image is always named: a guest writes every byte of a RAW disk, and can make it look like any format.
locks.py reads QEMU's locks, which show whether an image is open. marker.py keeps the link that marks an unfinished
conversion. qcow2_layout.py computes the layout of a qcow2 image whose content is known. It is pure.

Neighbours: hypervisor/ and the verbs use this package. It imports neither of them.
"""
