# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository on a file system without a byte or an inode left: retention frees space, and no restore point is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_history import EngineHistory
from histories import use_small_disks
from samples import UUID

from _cbt.errors import StorageFull
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep.retention import RetentionRequest, RetentionResult, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import open_repository
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing.leases import ASTRAY, LAPSE
from _cbt.repository.stores import reserve

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")

SIZE = 12 << 20
INODES = 700
GRACE = 86400.0
LAST = RetentionRequest(rules=Rules(last=1), grace=0.0)


@contextlib.contextmanager
def _ext4(folder: Path) -> Iterator[None]:
    image = folder.with_suffix(".img")
    with open(image, "wb") as file:
        file.truncate(SIZE + (4 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-N", str(INODES), "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    yield


@contextlib.contextmanager
def _tmpfs(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},nr_inodes={INODES}", "small", str(folder)], check=True)
    yield


class Full:
    """A history on a small file system, and what fills that up."""

    def __init__(self, folder: Path, passphrase: str | None) -> None:
        self.folder = folder
        self.place = RepositoryLocation(str(folder / "repository"), passphrase)
        made = open_or_create(self.place)
        assert made is not None
        self.history = EngineHistory()
        self.history.fresh = lambda: open_repository(self.place)  # type: ignore[method-assign]

    @property
    def root(self) -> str:
        return str(self.folder / "repository")

    def back_up(self, points: int, blocks: int = 8) -> None:
        """Points, each of which has a pack of its own."""
        for number in range(points):
            for block in range(blocks):
                self.history.disk.write(block, 100 + 10 * number + block)
            self.history.backup()

    def fill(self, inodes: bool = True) -> None:
        """Take what is left of the file system, or only its bytes."""
        (self.folder / "fillers").mkdir(exist_ok=True)
        with open(self.folder / "filler", "ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)
        with contextlib.suppress(OSError):
            for number in range(INODES * inodes):
                (self.folder / "fillers" / str(number)).touch()

    @property
    def left(self) -> tuple[int, int]:
        """Bytes and inodes."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize, found.f_favail

    def empty(self) -> None:
        """Take away what filled it up."""
        (self.folder / "filler").unlink()
        for each in (self.folder / "fillers").glob("*"):
            each.unlink()

    def retain(self, request: RetentionRequest) -> RetentionResult:
        """Retention, as another process does it."""
        return retention(open_repository(self.place), request)

    def points(self) -> int:
        """How many there are, all of them true."""
        assert not self.history.wrong()
        return len(self.history.fresh().points_of(UUID).points)

    def age(self, seconds: float) -> None:
        """Let time pass, as far as it is seen in the times of files."""
        for path in (self.folder / "repository").rglob("*"):
            found = path.stat()
            os.utime(path, (found.st_atime, found.st_mtime - seconds))


@pytest.fixture(params=["tmpfs", "ext4"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small file system."""
    use_small_disks(monkeypatch, cut=0)
    folder = tmp_path / "mounted"
    folder.mkdir()
    with {"tmpfs": _tmpfs, "ext4": _ext4}[request.param](folder):
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(params=[None, "correct horse"], ids=["plain", "encrypted"])
def full(request: pytest.FixtureRequest, mounted: Path) -> Full:
    """Five points, and not a byte or an inode left."""
    made = Full(mounted, request.param)
    made.back_up(5)
    made.fill()
    return made


def test_retention_frees_space_at_once_without_grace(full: Full) -> None:
    before = full.left
    result = full.retain(LAST)
    assert result.full and len(result.removed) == 4
    assert full.points() == 1
    assert full.left > before
    assert len(reserve.parts(full.root)) == reserve.PARTS
    assert not full.retain(LAST).full
    full.history.disk.write(0, 200)
    full.history.backup()
    assert full.points() == 2


def test_retention_frees_space_after_the_grace_period(full: Full) -> None:
    removed = full.retain(RetentionRequest(rules=Rules(last=1), grace=GRACE))
    assert removed.full and len(removed.removed) == 4 and len(removed.trash) == 4
    full.fill()
    for _night in range(3):
        full.age(GRACE + LAPSE + ASTRAY)
        last = full.retain(RetentionRequest(rules=Rules(last=1), grace=GRACE))
    assert last.trash == () and last.collected is not None
    assert full.points() == 1
    assert full.left[0] > 4 * BLOCK_SIZE
    assert len(reserve.parts(full.root)) == reserve.PARTS


def test_a_point_removed_on_a_full_store_can_be_brought_back_once_there_is_room(full: Full) -> None:
    removed = full.retain(RetentionRequest(rules=Rules(last=1), grace=GRACE)).removed
    full.empty()
    full.retain(RetentionRequest(undelete=tuple(each.id for each in removed)))
    assert full.points() == 5


def test_a_backup_leaves_the_reserve_alone(full: Full) -> None:
    full.history.disk.write(0, 200)
    with pytest.raises(StorageFull, match="No space left on device. Free space there"):
        full.history.backup()
    assert len(reserve.parts(full.root)) == reserve.PARTS
    del full.history.truth[max(full.history.truth)]
    assert full.points() == 5


def test_verification_and_listing_need_no_free_space(full: Full) -> None:
    verdicts, _seconds = verify(full.history.fresh(), VerifyRequest(wanted=ALL, workers=1), warn=lambda _text: None)
    assert {each.status for each in verdicts} == {"ok"}
    assert full.points() == 5


@pytest.mark.parametrize("points", [60])
def test_more_points_than_the_reserve_has_room_for_are_removed_in_turns(points: int, mounted: Path) -> None:
    full = Full(mounted, None)
    full.back_up(points, blocks=1)
    full.fill()
    result = full.retain(LAST)
    assert result.full and len(result.removed) == points - 1
    assert full.points() == 1
    assert len(reserve.parts(full.root)) == reserve.PARTS


def test_hooks_and_verifications_make_room_without_a_reserve(mounted: Path) -> None:
    full = Full(mounted, None)
    full.back_up(5)
    verify(full.history.fresh(), VerifyRequest(wanted=ALL, workers=1))
    for part in reserve.parts(full.root):
        reserve.release(full.root, part)
    full.fill(inodes=False)
    assert full.retain(LAST).full
    assert full.points() == 1
    assert len(reserve.parts(full.root)) == reserve.PARTS


def test_a_link_in_the_place_of_the_reserve_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "00").write_bytes(b"precious")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "reserve").symlink_to(outside)
    reserve.keep(str(tmp_path / "repository"))
    assert reserve.parts(str(tmp_path / "repository")) == []
    reserve.release(str(tmp_path / "repository"), "00")
    assert [(path.name, path.read_bytes()) for path in outside.iterdir()] == [("00", b"precious")]


def test_where_nothing_is_left_that_may_go_the_error_says_so_and_nothing_is_lost(mounted: Path) -> None:
    full = Full(mounted, None)
    full.back_up(2)
    for part in reserve.parts(full.root):
        reserve.release(full.root, part)
    for name in list(full.history.fresh().store.list("hooks")):
        full.history.fresh().store.delete(name)
    full.fill()
    with pytest.raises(StorageFull, match="No space left on device"):
        full.retain(LAST)
    assert full.points() == 2
