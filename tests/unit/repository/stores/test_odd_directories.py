# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories on file systems with odd rules: detected at creation, and worked around where possible."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.odd_filesystem import ODDITIES, mounted
from samples import random_bytes
from store_contract import LEASE, OTHER_LEASE, PACK, POINT

from _cbt import files
from _cbt.errors import CbtError, ObjectMissing, Refused, RepositoryError
from _cbt.operations.keys import KeyRequest, apply_keys
from _cbt.operations.restore import disk_writer, plan, restore, saved_machine
from _cbt.operations.restore.targets import ImageFile
from _cbt.repository.creation import open_or_create
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.memory.memory import Memory, Terms
from _cbt.repository.repository import open_repository
from _cbt.repository.stores import directory
from _cbt.repository.stores.directory import DirectoryStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE"),
]

NO_LOCKS = "has no locks between processes"
NO_EXCLUSIVE = "cannot create a file only if it does not exist"
OTHER_NAMES = "lists other names than files were given, such as in another letter case"
MODES = "new files have mode 0777, so other users can access the repository"

# What a repository does without, and the warning.
WORKED_ROUND = {
    (): None,
    ("no links",): None,
    ("no links", "no exclusive names"): NO_EXCLUSIVE,
    ("no locks",): NO_LOCKS,
    ("sham locks",): NO_LOCKS,
    ("any case",): None,
    ("other clock",): "differs from that of this host by +5.0 hours",
    ("fixed modes",): MODES,
    ("ignored modes",): MODES,
    ("unknown kinds",): None,
    ("no folder sync",): None,
    ("short reads",): None,
    ("hidden deletes",): None,
    ("no link counts",): None,
    ("coarse times",): None,
    ("other owner",): None,  # such as with root_squash
    ("full at close",): None,
    ("stale handles",): None,
    ("no sizes",): None,
    ("no links", "any case", "fixed modes", "no locks", "no folder sync"): NO_LOCKS,  # such as an SMB share
}
# What it cannot do without, and the error.
REFUSED = {
    "lower case": OTHER_NAMES,
    "double lists": OTHER_NAMES,
    "stale lists": "lists files that were deleted",
    "sham replacing": "does not replace files",
    "lost writes": "returns other bytes than were written",
    "no times": "does not report when a file was modified",
    "changing inodes": "reports changing inode numbers of a file",
    "appends only": "Operation not supported",
    "no replacing": "File exists",
    "open stays": "Device or resource busy",
    "short names": "File name too long",
    "full at sync": "No space left on device. Free space there",
    "no deletes": "Operation not permitted. Check owner and mode",
    "no writing": "Permission denied. Check owner and mode",
}


def test_every_oddity_is_shown() -> None:
    shown = {*REFUSED, *(each for oddities in WORKED_ROUND for each in oddities), "hanging locks"}
    assert shown == {*ODDITIES}


def everything_that_a_store_does(store: DirectoryStore) -> None:
    assert store.put(LEASE, b"one", replace=False)
    assert not store.put(LEASE, b"two", replace=False)
    assert store.swap(LEASE, b"one", b"two")
    assert not store.swap(LEASE, b"one", b"three")
    assert store.put(LEASE, b"three")
    data = random_bytes(300_001, 1)
    upload = store.upload(PACK)
    for start, stop in ((200_000, len(data)), (0, 100_000), (100_000, 200_000)):
        upload.write([data[start:stop]], start)
    assert upload.commit()
    assert store.get(PACK) == data
    assert store.get_range(PACK, 1000, 250_000) == data[1000:251_000]
    assert store.put(f"{POINT}/vda.map", b"map")
    assert list(store.list("points")) == [f"{POINT}/vda.map"]
    assert [(each.name, each.size) for each in store.entries("packs")] == [(PACK, len(data))]
    assert store.size(PACK) == len(data)
    used = store.upload(OTHER_LEASE)
    DirectoryStore(store.location).sweep()
    used.write([b"still"], 0)
    assert used.commit(), "a sweep removed a file in use"
    for name in (LEASE, OTHER_LEASE, PACK, f"{POINT}/vda.map"):
        store.delete(name)
    assert not [name for folder in ("leases", "packs", "points") for name in store.list(folder)]
    assert store.foreign.words() == []


@pytest.mark.parametrize("oddities", WORKED_ROUND, ids=" and ".join)
def test_a_repository_is_kept_in_spite_of_an_odd_rule_that_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oddities: tuple[str, ...]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    warnings: list[str] = []
    with mounted(tmp_path, *oddities) as point:
        location = str(point / "r")
        open_or_create(RepositoryLocation(location), watching=lambda store: Memory(store, Terms(warn=warnings.append)))
        assert sorted(os.listdir(location)) == ["repository.json", "reserve", "tmp"]
        assert os.listdir(f"{location}/tmp") == []
        everything_that_a_store_does(DirectoryStore(location))
        assert open_repository(location).points_of().points == ()
    expected = WORKED_ROUND[oddities]
    if expected is None:
        assert warnings == []
    else:
        assert [each for each in warnings if each.startswith(f"{location}: ") and expected in each], warnings


@pytest.mark.parametrize("oddity", REFUSED)
def test_a_repository_is_not_created_where_it_could_not_be_kept(tmp_path: Path, oddity: str) -> None:
    with mounted(tmp_path, oddity) as point:
        location = str(point / "r")
        for create in (
            lambda: open_or_create(RepositoryLocation(location)),
            lambda: apply_keys(RepositoryLocation(location), KeyRequest(None, "default", ())),
        ):
            with pytest.raises(
                CbtError, match=rf"^Cannot (keep|write|read|delete) .*{location}.*{REFUSED[oddity]}"
            ) as caught:
                create()
            assert "/proc/" not in str(caught.value)
            left = tmp_path / "below" / "r"
            assert oddity == "no writing" or [each.name for each in left.iterdir()] == ["tmp"]
            assert oddity == "no deletes" or not list(left.glob("tmp/*"))


def test_check_mode_does_not_test_the_file_system(tmp_path: Path) -> None:
    location = str(tmp_path / "r")
    assert open_or_create(RepositoryLocation(location), check_only=True) is None
    apply_keys(RepositoryLocation(location), KeyRequest(None, "default", ()), check_only=True)
    assert not os.path.exists(location)


def test_a_link_in_the_place_of_tmp_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "tmp").symlink_to(elsewhere)
    with pytest.raises(RepositoryError, match="symbolic link"):
        open_or_create(RepositoryLocation(str(tmp_path / "r")))
    assert list(elsewhere.iterdir()) == []


class TestLockManagerThatDoesNotAnswer:
    MESSAGE = "no answer to a request for a file lock within .* seconds. Check the lock manager"

    @pytest.fixture
    def location(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        monkeypatch.setattr(files, "_ANSWERED_WITHIN", 0.3)
        monkeypatch.setattr(files, "_answered", {})  # device numbers are used again
        before = set(threading.enumerate())
        with mounted(tmp_path, "hanging locks") as point:
            yield str(point)
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
            assert not thread.is_alive()

    def test_every_operation_that_locks_ends_in_time_with_a_message(self, location: str) -> None:
        below = Path(location).parent / "below"
        DirectoryStore(str(below)).put(LEASE, b"x")
        store = DirectoryStore(location)
        for call in (
            lambda: store.put(OTHER_LEASE, b"x"),
            lambda: store.put(OTHER_LEASE, b"x", replace=False),
            lambda: store.upload(PACK),
            lambda: store.swap(LEASE, b"x", b"y"),
        ):
            began = time.monotonic()
            with pytest.raises(RepositoryError, match=rf"Cannot write {location}/.*: {self.MESSAGE}"):
                call()
            assert time.monotonic() - began < 20
        assert os.listdir(below / "tmp") == []
        assert store.get(LEASE) == b"x"
        (below / "tmp" / f"{os.uname().nodename}-{'0' * 16}").write_bytes(b"left")
        store.sweep()
        assert len(os.listdir(below / "tmp")) == 1

    def test_no_repository_is_created(self, location: str) -> None:
        with pytest.raises(RepositoryError, match=self.MESSAGE):
            open_or_create(RepositoryLocation(location))


# NFS answers requests for an open file that another host deleted with ESTALE. The end of a lease is not an error of the storage.


@pytest.fixture
def stale_store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with mounted(tmp_path, "stale handles") as point:
        store = DirectoryStore(str(point))
        store.put(LEASE, b"one")
        yield store


@pytest.fixture
def deleting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes | None], None]:
    """Have the lease deleted, or replaced, once a function of ``os`` is called."""

    def deleting(function: str, successor: bytes | None = None) -> None:
        real, left, path = getattr(os, function), [True], tmp_path / "below" / LEASE

        def act(*arguments: object, **options: object) -> object:
            if left:
                left.clear()
                path.unlink()
                if successor is None:
                    path.parent.rmdir()
                else:
                    path.write_bytes(successor)
            return real(*arguments, **options)

        monkeypatch.setattr(os, function, act)

    return deleting


@pytest.mark.parametrize("function", ["pread", "fstat"])
@pytest.mark.parametrize("read", [DirectoryStore.get, lambda *which: DirectoryStore.get_range(*which, 0, 9)])
def test_an_open_file_that_another_host_deleted_does_not_exist_or_is_the_new_one(
    stale_store: DirectoryStore,
    deleting: Callable[..., None],
    function: str,
    read: Callable[[DirectoryStore, str], bytes],
) -> None:
    deleting(function, b"two")
    assert read(stale_store, LEASE) == b"two"
    deleting(function)
    with pytest.raises(ObjectMissing):
        read(stale_store, LEASE)


def test_a_listing_of_a_folder_that_another_host_deleted_is_empty(
    stale_store: DirectoryStore, deleting: Callable[..., None]
) -> None:
    deleting("scandir")
    assert list(stale_store.list("leases")) == []


def test_a_repository_whose_share_is_gone_is_an_error_and_not_missing(
    stale_store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_arguments: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "pread", gone)
    with pytest.raises(RepositoryError, match="Stale file handle") as caught:
        stale_store.get(LEASE)
    assert not isinstance(caught.value, ObjectMissing)


def test_a_file_swept_before_it_was_locked_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a file that is deleted while it is open gets another name, its number of links does not change."""
    real, swept = directory.lock, [True]
    with mounted(tmp_path, "hidden deletes") as point:

        def lock(handle: int, wait: bool = True) -> bool:
            if swept:
                swept.clear()
                for each in (point / "tmp").iterdir():
                    each.unlink()
            return real(handle, wait)

        monkeypatch.setattr(directory, "lock", lock)
        store = DirectoryStore(str(point))
        assert store.put(LEASE, b"one")
        assert store.get(LEASE) == b"one"
    assert not swept


class TestRestoreToAnOddFolder:
    @pytest.mark.parametrize(
        "oddities",
        [("no links",), ("no links", "no exclusive names"), ("no locks",), ("fixed modes",), ("no link counts",)],
        ids=" and ".join,
    )
    def test_an_image_never_replaces_a_file_that_has_its_name(self, tmp_path: Path, oddities: tuple[str, ...]) -> None:
        with mounted(tmp_path, *oddities) as point:
            path = str(point / "disk")
            for content in (b"one", b"two"):
                disk_writer.sweep(path)
                partial = disk_writer.partial_name(path)
                image = ImageFile(partial, 3, "none")
                image.write([content], 0)
                image.close()
                if content == b"one":
                    restore._appear(partial, path, force=False)
                else:
                    with pytest.raises(Refused, match="created in the meantime"):
                        restore._appear(partial, path, force=False)
            assert Path(path).read_bytes() == b"one"

    def test_a_file_system_that_reports_no_size_does_not_count_as_full(self, tmp_path: Path) -> None:
        with mounted(tmp_path, "no sizes") as point:
            plan.check_space([(str(point / "disk"), 1 << 30)])

    @pytest.mark.parametrize("oddity", ["fixed modes", "other owner"])
    def test_a_file_of_a_machine_keeps_the_mode_that_cannot_be_changed(self, tmp_path: Path, oddity: str) -> None:
        saved = saved_machine.SavedFile("nvram", "/n", 0, "", (), "root", "root", 0o600)
        with mounted(tmp_path, oddity) as point, open(point / "nvram", "wb") as file:
            warnings = saved_machine._own(file.fileno(), saved, str(point / "nvram"))
        assert len(warnings) == 1
        assert f"Cannot set owner and mode of {point / 'nvram'}: Operation not permitted." in warnings[0]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EIO])
def test_only_a_folder_need_not_be_synced_where_that_is_not_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError):
        files.sync(str(tmp_path / "file"))
    if number == errno.EIO:
        with pytest.raises(OSError):
            files.sync(str(tmp_path))
    else:
        files.sync(str(tmp_path))


def test_a_lock_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    first, second = (os.open(path, os.O_RDWR) for _which in range(2))
    assert files.lock(first)
    assert not files.lock(second, wait=False)
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(files.lock(second)))
    thread.start()
    os.close(first)
    thread.join(10)
    assert got == [True]
    os.close(second)


def test_one_request_for_a_lock_in_a_minute_is_made_by_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread for each would need much memory, and a file system that answered may stop answering."""
    by: list[threading.Thread] = []
    monkeypatch.setattr(files, "_answered", {})
    monkeypatch.setattr(fcntl, "flock", lambda *_arguments: by.append(threading.current_thread()))
    now: list[float] = []
    monkeypatch.setattr(files.time, "monotonic", lambda: now[-1])
    with open(tmp_path / "file", "w") as file:
        for seconds in (1000.0, 1001.0, 1059.0, 1061.0, 1062.0):
            now.append(seconds)
            assert files.lock(file.fileno())
    assert [each is threading.main_thread() for each in by] == [False, True, True, False, True]


def test_leftovers_of_killed_restores_are_removed_where_only_a_writable_file_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does, which makes a lock of the whole file a lock of a range."""
    real = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    left, used = (Path(disk_writer.partial_name(str(tmp_path / "disk"))) for _which in range(2))
    left.write_bytes(b"left")
    image = ImageFile(str(used), 4096, "none")
    disk_writer.sweep(str(tmp_path / "disk"))
    image.close()
    assert (left.exists(), used.exists()) == (False, True)
