# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verifies restore points: their structure, and every byte or a sample.

verify.py is the verb. A damaged object is read twice before it counts as damaged. verdicts.py has the result for
each restore point. findings.py keeps what was found in one pack for all points that share it, and records damage so
that the next backup can heal it.

Neighbours: repository/ alone. records/ keeps the damage and the time of the last verification.
"""
