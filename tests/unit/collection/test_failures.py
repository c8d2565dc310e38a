# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How modules fail: with a message, with the result if there is one, and never with a traceback."""

from __future__ import annotations

from typing import Any

import pytest
from modules_run import Case, run_modules
from samples import point, record

from _cbt.repository.creation import open_or_create

CASES = {
    "option": Case("cbt_verify", {"repository": ["{folder}/repository"], "passphrase": ["secret"]}),
    "log": Case("cbt_verify", {"repository": "{folder}/repository", "log_path": "/dev/null/log"}),
    "library": Case("cbt_domain_info", {}, ("libvirt",)),
    "one of several libraries": Case("cbt_checkpoint_info", {}, ("libvirt_qemu",)),
    "library of a store": Case("cbt_verify", {"repository": "s3://bucket/prefix"}, ("boto3",)),
    "library of a query": Case(
        "cbt_backup_info", {"repository": "{folder}/repository", "query": "domains"}, ("jmespath",)
    ),
    "query": Case("cbt_backup_info", {"repository": "{folder}/repository", "query": "["}),
    "two ways to choose a restore point": Case(
        "cbt_restore",
        {
            "repository": "{folder}/repository",
            "domain": "web1",
            "dest": "/none",
            "restore_point": "20260101T000000Z-deadbeef",
            "until": "2026-11-25",
        },
    ),
    "the default of the other way": Case(
        "cbt_restore",
        {
            "repository": "{folder}/repository",
            "domain": "web1",
            "dest": "/none",
            "restore_point": "latest",
            "until": "2025",
        },
    ),
    "the default of the other way by its other name": Case(
        "cbt_restore",
        {
            "repository": "{folder}/repository",
            "domain": "web1",
            "dest": "/none",
            "restore_points": "latest",
            "until": "2025",
        },
    ),
    "nowhere to restore to": Case("cbt_restore", {"repository": "{folder}/repository", "domain": "web1"}),
    "an empty map of disks": Case(
        "cbt_restore", {"repository": "{folder}/repository", "domain": "web1", "disk_map": {}}
    ),
    "engine": Case("cbt_verify", {"repository": "{folder}/repository/none"}),
    "damage": Case("cbt_verify", {"repository": "{folder}/repository"}),
    "copy": Case(
        "cbt_copy", {"repository": "{folder}/repository", "dest_repository": "{folder}/dest", "create_repository": True}
    ),
}
MESSAGES = {
    "option": "passphrase",
    "log": "/dev/null/log",
    "library": "Failed to import the required Python library (libvirt-python)",
    "one of several libraries": "Failed to import the required Python library (libvirt-python)",
    "library of a store": "has no module boto3, which S3 needs. Install python3-boto3.",
    "library of a query": "Failed to import the required Python library (jmespath)",
    "query": "The query [ cannot be read: ",
    "two ways to choose a restore point": "parameters are mutually exclusive: restore_point|until",
    "the default of the other way": "Cannot read the date 2025. ",
    "the default of the other way by its other name": "Cannot read the date 2025. ",
    "nowhere to restore to": "one of the following is required: dest, disk_map",
    "an empty map of disks": "Nothing says where to restore to. Set dest to a folder, or disk_map ",
    "engine": "There is no repository in ",
    "damage": "1 restore points cannot be restored as they were.",
    "copy": "1 restore points were not copied.",
}
RESULTS = {
    "damage": {"restore_points", "duration", "limited_by"},
    "copy": {"changed", "copied", "present", "failed_points", "duration", "limited_by"},
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The result of each case."""
    folder = tmp_path_factory.mktemp("failures")
    made = open_or_create(str(folder / "repository"))
    assert made is not None
    made.publish(point(1, (record("vda", 1 << 20),)))  # its map is missing
    return run_modules(folder, CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_module_fails_with_a_message_and_its_result(failures: dict[str, dict[str, Any]], case: str) -> None:
    result = failures[case]
    assert (result["code"], result["failed"]) == (1, True)
    assert MESSAGES[case] in result["msg"]
    assert set(result) - {"code", "failed", "msg", "invocation", "warnings"} == RESULTS.get(case, set())


def test_the_result_of_a_failure_names_what_failed(failures: dict[str, dict[str, Any]]) -> None:
    assert [each["id"] for each in failures["damage"]["restore_points"]] == [point(1).id]
    assert set(failures["copy"]["failed_points"]) == {point(1).id}
