# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What retention refuses to do."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from samples import point

from _cbt.errors import Refused
from _cbt.operations.upkeep.retention_plan import RetentionRequest, decide_all
from _cbt.operations.upkeep.retention_rules import Rules

NOW = datetime.datetime(2026, 7, 1, tzinfo=datetime.UTC)
FUTURE = {"created": "2031-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("rules", "last"),
    [
        (Rules(), {}),
        (Rules(), {"pinned": True}),
        (Rules(), FUTURE),
        (Rules(tags=("hold",)), {}),
        (Rules(tags=("hold",)), FUTURE),
    ],
    ids=["none", "none, pinned", "none, of the future", "no tag", "no tag, of the future"],
)
def test_rules_that_take_nothing_are_refused_whatever_stays_without_them(rules: Rules, last: dict[str, Any]) -> None:
    found = [point(1), point(2), point(3, **last)]
    with pytest.raises(Refused, match=r"would keep no restore point of web1.*keep_last: 1.*allow_empty: true"):
        decide_all(found, RetentionRequest(rules), NOW)
    assert [verdict.kept for verdict in decide_all(found, RetentionRequest(rules, allow_empty=True), NOW)] == [
        False,
        False,
        bool(last),
    ]


def test_where_nothing_goes_or_a_rule_leaves_pinned_points_alone_nothing_is_refused() -> None:
    assert decide_all([point(1, pinned=True), point(2, **FUTURE)], RetentionRequest(Rules()), NOW)
    assert len(decide_all([point(1, pinned=True), point(2)], RetentionRequest(Rules(tags=("hold",))), NOW)) == 2
