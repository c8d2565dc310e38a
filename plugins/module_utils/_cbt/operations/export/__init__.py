# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves disks of a restore point over NBD, as long as the export lasts.

plan.py decides what is served, and where. export.py is the verb: it holds the restore point, starts the server and ends
both. exports.py keeps what this host serves. launch.py starts and stops the process of a server. server.py is that
process, which runs from an archive of the engine.

Neighbours: repository/views/ reads the disks, blocks/server/ speaks NBD.
"""
