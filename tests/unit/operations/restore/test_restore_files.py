# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restored files appear under their names when they are complete, and never in the place of another's."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_history import EngineHistory

from _cbt.control import Control, Progress
from _cbt.errors import Refused
from _cbt.operations.restore import restore as restoring
from _cbt.operations.restore.restore import RestoreRequest, restore


@pytest.fixture
def history() -> EngineHistory:
    """One point of a disk."""
    made = EngineHistory()
    made.disk.write(3, 7)
    made.backup()
    return made


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    """Where disks are restored to."""
    folder = tmp_path / "dest"
    folder.mkdir()
    return folder


def _request(dest: Path, force: bool = False) -> RestoreRequest:
    return RestoreRequest("web1", dest=str(dest), format="raw", workers=1, force=force)


def test_a_file_has_its_name_only_once_it_is_complete(history: EngineHistory, dest: Path) -> None:
    seen: list[list[str]] = []

    def look(_progress: Progress) -> None:
        seen.append([path.name for path in dest.iterdir()])

    (disk,) = restore(history.fresh(), _request(dest), control=Control(look)).disks
    assert seen and all(name.startswith("web1-vda.raw.partial-") for names in seen for name in names)
    assert [path.name for path in dest.iterdir()] == ["web1-vda.raw"]
    (truth,) = history.truth.values()
    assert Path(disk.path).read_bytes() == truth


@pytest.mark.parametrize("force", [False, True])
def test_a_file_of_another_that_appears_at_the_last_moment_stays_unless_by_force(
    history: EngineHistory, dest: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = dest / "web1-vda.raw"
    monkeypatch.setattr(restoring._Restore, "_write_files", lambda *_arguments: theirs.write_bytes(b"theirs"))
    if force:
        restore(history.fresh(), _request(dest, force))
    else:
        with pytest.raises(Refused, match="a file with that name was created in the meantime. Choose another path"):
            restore(history.fresh(), _request(dest))
    (truth,) = history.truth.values()
    assert theirs.read_bytes() == (truth if force else b"theirs")
    assert list(dest.iterdir()) == [theirs]
