# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a domain definition from a repository may ask a host for.

``table`` lists it, ``rules`` reads the table, ``values`` judges single values, ``filtering`` walks a definition, ``firmware`` knows the
firmware of a host.
"""
