# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the XML of a domain's definition. Pure: nothing is asked of libvirt or of a file.

disks.py lists the disks, disk_kinds.py what each kind of disk shows a guest, machine_files.py the other files of the
machine, description.py what a listing shows of it.
"""
