# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of damaged packs and of past verifications.

damage.py records packs that were read twice and found damaged. New restore points do not build on them, and a backup or
copy that finds the content again heals them. verified.py records the last verification of a restore point and, for
samples, which slice is next. If records are lost, the damage is found again, and the verification starts over.

Neighbours: verify writes the records, backup and upkeep use them.
"""
