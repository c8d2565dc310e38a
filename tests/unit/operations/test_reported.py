# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What retention and a verification report of what they decide and do."""

from __future__ import annotations

from histories import History

from _cbt.control import Control, Event
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.selecting import ALL


def test_each_point_that_goes_is_reported_with_its_reason_and_each_object_by_its_name() -> None:
    history = History()
    for number in range(1, 4):
        for block in range(16):
            history.disk.write(block, 100 * number + block)
        history.backup()
    history.store.clock = 4e9  # all points are of the past
    events: list[Event] = []
    before = {name for name in history.store.objects if name.startswith("packs/")}
    result = retention(
        history.fresh(), RetentionRequest(Rules(last=1), grace=0.0), control=Control(listener=events.append)
    )
    gone = [point.id for point in result.removed]
    assert gone
    assert [each.fields["point"] for each in events if each.name == "remove"] == gone
    assert [each.fields["point"] for each in events if each.name == "removed"] == gone
    assert [each.fields["reason"] for each in events if each.name == "keep"] == ["last"]
    deleted = {each.fields["object"] for each in events if each.name == "deleted"}
    assert {name for name in deleted if str(name).startswith("packs/")} == before - history.store.objects.keys()
    (end,) = [each for each in events if (each.phase, each.name) == ("collecting", "ended")]
    assert result.collected is not None
    assert end.fields["deleted"] == result.collected.deleted == len(deleted)
    events.clear()
    verdicts, _seconds = verify(history.fresh(), VerifyRequest(wanted=ALL), Control(listener=events.append))
    ends = [each.fields for each in events if (each.phase, each.name) == ("verifying", "ended")]
    assert [each["checked_bytes"] for each in ends] == [verdict.checked_bytes for verdict in verdicts]
