# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores disks of a restore point, or the whole machine.

restore.py is the verb. plan.py decides which disk goes where and refuses targets that are in use, or that hold data
unless the request has force. disk_writer.py writes a disk to a target of targets.py: a new image, a block device or an
NBD export. New images have temporary names until all of them are complete. machine.py defines the domain from the
configuration that machine_xml.py adapts. saved_machine.py reads and verifies the configuration and files in the point,
because anyone who can write to a repository decides what is in it.

Neighbours: point/ for the files of a machine, images/ for locks and the qcow2 layout, hypervisor/ to define the domain.
"""
