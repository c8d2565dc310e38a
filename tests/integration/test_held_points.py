# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore point in a directory is held: cbt_retention keeps it, cbt_repository_info lists the hold, until it is released."""

from __future__ import annotations

import datetime
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from module_process import collection_path, created, run_module
from stored_points import UUID, publish

from _cbt.grid import BLOCK_SIZE
from _cbt.repository.format import codecs, manifests, names
from _cbt.repository.format.manifests import DiskRecord, RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import Encoded
from _cbt.repository.records import damage
from _cbt.repository.records.damage import PackDamage
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.sharing import holding, holds

NIGHT: dict[str, Any] = {"keep_last": 1, "grace": 0}
# Mounts a directory read-only for one process, and runs it.
_READ_ONLY = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"',
    "sh",
]
_HOLD = """
import datetime, json, sys
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations import repository_status
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.repository.sharing import holding
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.repository.repository import open_repository
repository = open_repository(sys.argv[1])
attempt = holding.hold_if_writable(repository, repository.points_of().points[0], "export")
found = repository_status.status(repository, datetime.datetime.now(datetime.timezone.utc))
print(json.dumps([attempt.hold, attempt.warning, found.sizes.restore_points]))
"""


def published(repository: Repository, age: int) -> RestorePoint:
    """A point with one block, taken so many days ago."""
    taken = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age)
    point_id, data = manifests.new_id(taken), bytes([age + 1]) * BLOCK_SIZE
    writer, builder = repository.writer(), MapBuilder(BLOCK_SIZE)
    builder.put(
        0, 1, *writer.append([Encoded(repository.keys.block_id(data), *codecs.encoder("none")(data), len(data))])
    )
    extents = builder.finish(writer.finish())
    files = repository.put_files(names.point_folder(UUID, point_id), {names.map_file("vda"): extents.encode()})
    statistics = {"new_bytes": BLOCK_SIZE, "stored_bytes": 1000 + age}
    disk = DiskRecord("vda", BLOCK_SIZE, "full", "", files[names.map_file("vda")], None, {}, statistics)
    return publish(repository, point_id, taken, (disk,), {})


@pytest.fixture
def place(tmp_path: Path) -> str:
    return created(tmp_path, tmp_path / "repository")


def test_a_held_point_survives_retention_until_it_is_released(place: str, tmp_path: Path) -> None:
    repository = open_repository(place)
    old, young = published(repository, 3), published(repository, 1)
    hold = holding.hold(repository, old, "export")
    reason = f"held by export on {socket.gethostname()} since {hold.begun}"
    for check in (True, False):
        result = run_module(tmp_path, "cbt_retention", check, repository=place, **NIGHT)
        assert [(each["id"], each["rules"]) for each in result["kept"]] == [(old.id, [reason]), (young.id, ["last"])], (
            result
        )
        assert (result["removed"], result["damaged"], result["changed"]) == ([], {}, False)
    assert [each.id for each in open_repository(place).points_of().points] == [old.id, young.id]
    holds.release(open_repository(place), hold.id)
    result = run_module(tmp_path, "cbt_retention", repository=place, **NIGHT)
    assert [each["id"] for each in result["removed"]] == [old.id] and result["changed"]
    assert [each.id for each in open_repository(place).points_of().points] == [young.id]


def test_a_damaged_hold_keeps_its_point_and_retention_says_what_to_do(place: str, tmp_path: Path) -> None:
    repository = open_repository(place)
    old, _young = published(repository, 3), published(repository, 1)
    hold = holding.hold(repository, old, "export")
    (Path(place) / hold.name).write_bytes(b"damaged")
    result = run_module(tmp_path, "cbt_retention", repository=place, **NIGHT)
    assert result["kept"][0]["rules"] == [f"held by {hold.name}, which cannot be read"] and result["removed"] == []
    assert "reclaimed_bytes" not in result and list(result["damaged"]) == [hold.name]
    told = str(result["warnings"])
    assert (
        f"No space is reclaimed while {hold.name} cannot be read: " in told
        and f"Delete {hold.name} from the repository" in told
    )
    (listed,) = run_module(tmp_path, "cbt_repository_info", repository=place)["holds"]
    assert (listed["id"], listed["restore_point"], listed["uuid"]) == (hold.id, old.id, UUID)
    assert (listed["domain"], listed["host"], listed["since"]) == (None, None, None) and "Delete" in listed["damaged"]


def test_the_state_of_a_repository_is_returned_and_nothing_is_written(place: str, tmp_path: Path) -> None:
    repository = open_repository(place)
    for age in (40, 20, 3, 1):
        published(repository, age)
    latest = repository.points_of().points[-1]
    hold = holding.hold(repository, latest, "export")
    (pack,) = repository.read_packs(latest, latest.disks[0])
    repository.put_object(
        names.damage_of(pack.id), damage.encode(PackDamage(frozenset({0}), "block 0 has another checksum"))
    )
    before = {path: path.stat().st_mtime_ns for path in Path(place).rglob("*")}
    found = run_module(tmp_path, "cbt_repository_info", repository=place)
    assert {path: path.stat().st_mtime_ns for path in Path(place).rglob("*")} == before
    assert found == {**run_module(tmp_path, "cbt_repository_info", True, repository=place)} and not found["changed"]
    assert found["repository"] == {"id": repository.id, "format": 1, "encrypted": False, "slots": []}
    sizes = {path: path.stat().st_size for path in Path(place).rglob("*") if path.is_file()}
    assert found["sizes"] == {
        "domains": 1,
        "restore_points": 4,
        "removed_points": 0,
        "packs": 4,
        "pack_bytes": sum(size for path, size in sizes.items() if "/packs/" in str(path)),
        "condemned_packs": 0,
        "condemned_bytes": 0,
        "metadata_bytes": sum(size for path, size in sizes.items() if "/points/" in str(path)),
    }
    growth = found["growth"]
    assert [(day["restore_points"], day["new_bytes"], day["stored_bytes"]) for day in growth["days"]] == [
        (1, BLOCK_SIZE, 1000 + age) for age in (20, 3, 1)
    ]
    assert growth["last_7_days"] == {"restore_points": 2, "new_bytes": 2 * BLOCK_SIZE, "stored_bytes": 2004}
    assert growth["last_30_days"] == {"restore_points": 3, "new_bytes": 3 * BLOCK_SIZE, "stored_bytes": 3024}
    assert found["damage"] == [{"object": pack.name, "blocks": 1, "cause": "block 0 has another checksum"}]
    host = socket.gethostname()
    kept = {
        "restore_point": latest.id,
        "domain": "web1",
        "uuid": UUID,
        "host": host,
        "purpose": "export",
        "since": hold.begun,
        "damaged": None,
    }
    assert found["holds"] == [{"id": hold.id, **kept}]
    assert found["sessions"] == []


def test_a_repository_mounted_read_only_is_usable_with_a_warning(place: str, tmp_path: Path) -> None:
    made = published(open_repository(place), 1)
    command = [*_READ_ONLY, place, sys.executable, "-c", _HOLD, place]
    environment = {
        "PYTHONPATH": str(collection_path(tmp_path)),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
    }
    hold, warning, count = json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout
    )
    assert (hold, count) == (None, 1)
    assert warning.startswith(
        f"Restore point {made.id} of web1 is used without a hold, because the repository is read-only here: Cannot write"
    )
    assert list(Path(place).glob("holds/*")) == []
