# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides what a domain definition from a repository may use on a host.

``table`` lists the allowed parts, ``rules`` reads the table, ``values`` checks single values, ``filtering`` filters a
definition, and ``firmware`` lists the firmware that a host describes.
"""
