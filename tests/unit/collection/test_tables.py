# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of restore points, and the domains to decommission."""

from __future__ import annotations

from typing import Any

import fleet
import pytest

VERIFIED = {"at": "2026-01-03T02:00:11+00:00", "level": "data", "percent": 100, "status": "ok"}


def point(day: int, domain: str = "web1", uuid: str = "u1", **fields: Any) -> dict[str, Any]:
    """A restore point as cbt_backup_info returns it."""
    return {
        "id": f"202601{day:02d}T120000Z-{day:08x}",
        "domain": domain,
        "uuid": uuid,
        "created": f"2026-01-{day:02d}T12:00:00.000000+00:00",
        "consistency": "crash",
        "disks": [{"target": "vda", "virtual_size": 3 << 30}, {"target": "vdb", "virtual_size": 1 << 29}],
        "tags": {},
        "note": "",
        "pinned": False,
        "verified": None,
        "damaged": False,
        **fields,
    }


POINTS = [
    point(3, consistency="filesystem", verified=VERIFIED),
    point(1, damaged=True),
    point(
        2, "db1", "u2", verified={**VERIFIED, "percent": 15, "level": "structure", "status": "damaged"}, damaged=True
    ),
    point(4, "db1", "u3", disks=[]),
    point(2, "old name", "u4", pinned=True, tags={"why": "CHG-1", "a": "b"}, note="Before the\x1b[2J upgrade"),
    point(5, "new name", "u4"),
]
FOUND = {"restore_points": POINTS, "damaged": {"points/u9/x": "its checksum\ndoes not match"}}


def test_a_line_for_each_domain_describes_its_newest_restore_point() -> None:
    assert fleet.restore_points(FOUND) == [
        "DOMAIN    POINTS  NEWEST            SIZE     VERIFIED                                 DAMAGED  CONSISTENCY",
        "db1 (u2)  1       2026-01-02 12:00  3.5 GiB  2026-01-03 02:00 structure 15 % damaged  1        crash",
        "db1 (u3)  1       2026-01-04 12:00  0 bytes  never                                    0        crash",
        "new name  2       2026-01-05 12:00  3.5 GiB  never                                    0        crash",
        "web1      2       2026-01-03 12:00  3.5 GiB  2026-01-03 02:00 data ok                 1        filesystem",
        r"DAMAGED: points/u9/x: its checksum\ndoes not match",
    ]


def test_a_line_for_each_restore_point_has_its_id_pin_tags_and_note() -> None:
    lines = fleet.restore_points({**FOUND, "damaged": {}}, "old*,u1", "", "yes")
    assert [line.split()[:4] for line in lines] == [
        ["DOMAIN", "RESTORE", "POINT", "CREATED"],
        ["old", "name", "20260102T120000Z-00000002", "2026-01-02"],
        ["web1", "20260101T120000Z-00000001", "2026-01-01", "12:00"],
        ["web1", "20260103T120000Z-00000003", "2026-01-03", "12:00"],
    ]
    assert lines[1].endswith(r"no       crash        yes     a=b,why=CHG-1  Before the\x1b[2J upgrade")
    assert lines[2].endswith("never                     yes      crash        no      -              -")


def test_names_uuids_and_patterns_select_what_the_table_lists() -> None:
    def listed(*arguments: Any) -> list[str]:
        return [line.split()[0] for line in fleet.restore_points({**FOUND, "damaged": {}}, *arguments)[1:]]

    assert listed() == listed("all") == listed(["*"]) == ["db1", "db1", "new", "web1"]
    assert listed("all", "db1,u4") == ["web1"]
    assert listed(["u3", "web?"]) == ["db1", "web1"]
    assert listed("none") == []


def test_domains_that_leave_are_named_by_name_or_uuid_and_patterns_are_none() -> None:
    assert fleet.leaving(FOUND, "web1,gone") == [{"label": "web1", "options": {"domain": "u1"}}]
    assert [run["options"]["domain"] for run in fleet.leaving(FOUND, ["db1"])] == ["u2", "u3"]
    assert [run["options"]["domain"] for run in fleet.leaving(FOUND, ["u3"])] == ["u3"]
    assert fleet.leaving(FOUND, "*,w?b1,all") == []


def test_a_name_that_neither_a_host_nor_the_repository_has_is_unknown() -> None:
    hostvars = {
        "kvm1": {"step_found": {"domains": [{"name": "web2", "uuid": "u7"}]}, "step_points": FOUND},
        "kvm2": {"step_found": {"failed": True, "msg": "none"}},
    }
    asked = "web1,web2,u7,u4,old name,none,u8"
    assert fleet.unknown(asked, ["kvm1", "kvm2", "kvm3"], hostvars, "step") == ["none", "u8"]
    assert fleet.unknown("web1", ["kvm2"], hostvars, "step") == ["web1"]


@pytest.mark.parametrize("lost", ["failed", "unreachable"])
def test_no_name_is_unknown_while_a_repository_cannot_be_listed(lost: str) -> None:
    hostvars = {"kvm1": {"step_points": FOUND}, "kvm2": {"step_points": {lost: True, "msg": "no answer"}}}
    assert fleet.unknown("none", ["kvm1"], hostvars, "step") == ["none"]
    assert fleet.unknown("none", ["kvm1", "kvm2"], hostvars, "step") == []
