# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of a real backup and restore says what their results say."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from module_process import run_module

MIB = 1 << 20
SECRET = "correct horse battery"
COUNTED = (
    "dirty_bytes",
    "read_bytes",
    "zero_bytes",
    "unchanged_bytes",
    "deduplicated_bytes",
    "new_bytes",
    "stored_bytes",
)


class Line:
    """A line of the log."""

    def __init__(self, text: str) -> None:
        self.time, self.level, self.source, self.phase, self.event, *fields = shlex.split(text)
        self.fields = dict(field.split("=", 1) for field in fields)


def phases(lines: Sequence[Line]) -> list[str]:
    """The phases that ended, in their order."""
    return [line.phase for line in lines if line.event == "ended"]


def test_the_log_says_what_the_results_say(hypervisor: Hypervisor, workspace: Path, tmp_path: Path) -> None:
    log, repository, out = tmp_path / "cbt.log", str(workspace / "repository"), workspace / "out"
    out.mkdir()
    common = {"repository": repository, "passphrase": SECRET, "log_path": str(log)}
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB), DiskSpec("vdb", 4 * MIB)]) as domain:  # vdb stays empty
        domain.write_random("vda", 0, 6 * MIB, 1)
        backup = run_module(workspace, "cbt_backup", domain=domain.name, create_repository=True, **common)
        assert not backup.get("failed"), backup
        backed_up = [Line(text) for text in log.read_text().splitlines()]
        restore = run_module(workspace, "cbt_restore", domain=domain.name, dest=str(out), **common)
        assert not restore.get("failed"), restore
        restored = [Line(text) for text in log.read_text().splitlines()[len(backed_up) :]]
        missing = run_module(workspace, "cbt_restore", domain="no such\ndomain", dest=str(out), **common)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert SECRET not in log.read_text()

    assert (backed_up[0].event, backed_up[0].fields["domain"]) == ("started", domain.name)
    assert (backed_up[-1].event, backed_up[-1].fields) == ("succeeded", {"changed": "true"})
    assert {line.source.partition("[")[0] for line in backed_up} == {"cbt_backup"}
    assert phases(backed_up) == ["planning", "freezing", "reading", "reading", "publishing", "tidying"]
    plans = {line.fields["disk"]: line.fields for line in backed_up if line.event == "plan"}
    ends = {line.fields["disk"]: line.fields for line in backed_up if (line.phase, line.event) == ("reading", "ended")}
    for disk in backup["disks"]:
        assert [plans[disk["target"]][key] for key in ("mode", "reason")] == [disk["mode"], disk["reason"]]
        assert {key: int(ends[disk["target"]][key]) for key in COUNTED} == {key: disk[key] for key in COUNTED}
        assert {kind: float(ends[disk["target"]][f"{kind}_busy"]) for kind in disk["busy"]} == disk["busy"]
        assert (disk["busy"]["reading"] > 0) == (disk["read_bytes"] > 0)
        assert sum(disk["busy"].values()) <= 1.01
    assert " % of the time" in backup["limited_by"]
    assert " % of the time" in restore["limited_by"]
    seconds = [float(line.fields["seconds"]) for line in backed_up if line.event == "ended"]
    assert 0 < sum(seconds) <= backup["duration"] + 0.01

    written = {line.fields["disk"]: int(line.fields["written_bytes"]) for line in restored if line.event == "ended"}
    assert written == {disk["target"]: disk["written_bytes"] for disk in restore["disks"]}
    assert {line.source for line in restored}.isdisjoint({line.source for line in backed_up})

    last = Line(log.read_text().splitlines()[-1])
    assert missing["failed"]
    assert (last.event, last.level, last.fields["error"].replace("\\\\n", "\\n")) == (
        "failed",
        "WARNING",
        missing["msg"],
    )


def test_a_log_that_cannot_be_opened_ends_the_task_before_anything_is_done(
    hypervisor: Hypervisor, workspace: Path, tmp_path: Path
) -> None:
    repository = workspace / "repository"
    (tmp_path / "cbt.log").symlink_to("elsewhere")
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)]) as domain:
        options = {"domain": domain.name, "repository": str(repository), "create_repository": True}
        result = run_module(workspace, "cbt_backup", log_path=str(tmp_path / "cbt.log"), **options)
        assert result["failed"]
        assert result["msg"].startswith(
            f"Cannot write the log {tmp_path / 'cbt.log'}: Too many levels of symbolic links."
        )
        assert domain.checkpoints() == []
    assert not repository.exists()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("check", [False, True])
def test_the_environment_names_the_log_of_tasks_that_name_none(
    check: bool, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CBT_LOG_PATH", str(tmp_path / "environment.log"))
    repository = str(workspace / "repository")
    named = run_module(workspace, "cbt_repository", check, repository=repository, log_path=str(tmp_path / "option.log"))
    assert not (tmp_path / "environment.log").exists()
    unnamed = run_module(workspace, "cbt_repository", check, repository=repository)
    for name, result in (("option.log", named), ("environment.log", unnamed)):
        first, *_between, last = [Line(text) for text in (tmp_path / name).read_text().splitlines()]
        assert (first.event, first.fields) == ("started", {"repository": repository, "check_mode": str(check).lower()})
        assert (last.event, last.fields) == ("succeeded", {"changed": str(result["changed"]).lower()})
