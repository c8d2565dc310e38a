# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides what a domain definition from a repository may use on a host.

table.py lists the allowed parts, rules.py reads the table, values.py checks single values, filtering.py removes the
other parts from a definition, and firmware.py lists the firmware for which the host has descriptors.
"""
