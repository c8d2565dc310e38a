# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads and writes packs.

writer.py collects blocks from several threads into packs, and stores each full pack. reader.py reads blocks and
directories with a bounded cache, and checks each block against its id.

Neighbours: format/packs.py has the layout, crypto/ the keys, stores/ the objects. repository.py creates readers and
writers.
"""
