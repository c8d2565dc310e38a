# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules returned, in a line each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from _outcomes import described, size

ROOT = Path(__file__).resolve().parents[3]
POINT = {"id": "20261122T113005Z-1a2b3c4d"}
DISKS = [
    {"target": "vda", "mode": "incremental", "dirty_bytes": 2048, "read_bytes": 1536, "stored_bytes": 512},
    {"target": "vdb", "mode": "skipped", "dirty_bytes": None},
]


@pytest.mark.parametrize(
    ("module", "result", "line"),
    [
        ("cbt_backup", {"failed": True, "msg": "no space"}, "no space"),
        ("cbt_backup", {"failed": True}, "failed without a message"),
        (
            "cbt_backup",
            {"disks": DISKS, "restore_point": POINT, "duration": 2.4},
            f"{POINT['id']}: vda incremental, vdb skipped; 1.5 KiB read, 512 bytes stored in 2 s",
        ),
        ("cbt_backup", {"disks": DISKS}, "would examine 2.0 KiB: vda incremental, vdb skipped"),
        ("cbt_backup", {"disks": [], "skipped": "it is shut off"}, "skipped: it is shut off"),
        (
            "cbt_backup",
            {"disks": [{**DISKS[1], "reason": "vdb may be in use."}], "warnings": ["vdb may be in use."]},
            "would examine 0 bytes: vdb skipped; vdb may be in use.",
        ),
        ("cbt_checkpoint", {"actions": [], "foreign": []}, "in order"),
        ("cbt_checkpoint", {"actions": [], "foreign": [], "skipped": "it may be in use"}, "skipped: it may be in use"),
        ("cbt_image", {"actions": [], "left": []}, "nothing to convert"),
        (
            "cbt_image",
            {"actions": ["vda: by amend"], "left": [{"target": "vdb", "reason": "it may be in use"}]},
            "vda: by amend; vdb is not converted: it may be in use",
        ),
        (
            "cbt_checkpoint",
            {"actions": ["remove a", "remove b"], "foreign": ["theirs"]},
            "remove a; remove b; not ours: theirs",
        ),
        (
            "cbt_restore",
            {"domain": "web1", "restore_point": POINT, "disks": [{"target": "vda", "path": "/a"}]},
            f"would restore web1 of {POINT['id']}: vda to /a",
        ),
        (
            "cbt_restore",
            {"domain": "web1", "restore_point": POINT, "disks": [], "duration": 1.6},
            f"web1 of {POINT['id']}:  in 2 s",
        ),
        (
            "cbt_verify",
            {
                "restore_points": [
                    {"id": "a", "status": "ok", "checked_bytes": 1},
                    {"id": "b", "status": "damaged", "checked_bytes": 1},
                ]
            },
            "1 of 2 restore points are intact, 2 bytes checked; damaged: b",
        ),
        (
            "cbt_retention",
            {"kept": [1], "removed": [1, 2], "reclaimed_bytes": 0},
            "1 kept, 2 removed, 0 bytes reclaimed",
        ),
        ("cbt_retention", {"kept": [], "removed": []}, "0 kept, 0 removed"),
        ("command", {"changed": True}, "changed"),
        ("command", {}, "ok"),
    ],
)
def test_a_line_reports_the_action_taken(module: str, result: dict[str, Any], line: str) -> None:
    assert described(module, result) == line


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (3 << 19, "1.5 MiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes_are_shown_in_the_largest_unit_that_fits(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize("module", sorted((ROOT / "plugins/modules").glob("cbt_*.py")), ids=lambda path: path.stem)
def test_no_result_has_a_key_by_which_ansible_follows_a_job(module: Path) -> None:
    documented = re.search(r'^RETURN = r"""(.*?)^"""', module.read_text(), re.MULTILINE | re.DOTALL)
    keys = set(yaml.safe_load(documented[1]) or {}) if documented else set()
    assert not keys & {"ansible_job_id", "finished", "results_file", "started"}
