# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storms of sessions that hang while clocks are set, by seed: every point stays whole and true, and none comes back or vanishes."""

from __future__ import annotations

import clock_storm
import pytest
import soaks


@pytest.mark.soak("hangs")
def test_every_point_stays_true_while_sessions_hang_and_clocks_are_set() -> None:
    for seed in range(soaks.count("hangs")):
        try:
            clock_storm.storm(seed)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
