"""Objects as files: durable, whole or absent, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from samples import random_bytes
from store_contract import LEASE, MISSING, OTHER_LEASE, OTHER_PACK, OTHER_POINT, PACK, POINT
from stores_for_tests import failing

from _cbt.errors import ObjectMissing, RepositoryError
from _cbt.repository.stores.directory import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "repository"))


def files(store: DirectoryStore) -> list[str]:
    return sorted(str(path.relative_to(store.location)) for path in Path(store.location).rglob("*") if path.is_file())


def test_put_replaces_and_without_replace_keeps_what_is_there(store: DirectoryStore) -> None:
    assert store.put("repository.json", b"one")
    assert not store.put("repository.json", b"two", replace=False)
    assert store.get("repository.json") == b"one"
    assert store.put("repository.json", b"three")
    assert store.get("repository.json") == b"three"
    assert store.put("collected.json", b"new", replace=False)
    assert files(store) == ["collected.json", "repository.json"]


def test_exactly_one_of_several_concurrent_puts_without_replace_wins(store: DirectoryStore) -> None:
    outcome: dict[int, bool] = {}
    start = threading.Barrier(8)

    def put(number: int) -> None:
        start.wait()
        outcome[number] = DirectoryStore(store.location).put("repository.json", str(number).encode(), replace=False)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [number for number, won in outcome.items() if won]
    assert store.get("repository.json") == str(winner).encode()
    assert files(store) == ["repository.json"]


def test_an_upload_takes_ranges_in_any_order_and_appears_only_when_committed(store: DirectoryStore) -> None:
    upload = store.upload(PACK)
    upload.write([b"world", bytearray(b"!"), memoryview(b"!")], 6)
    upload.write([b"hello "], 0)
    assert not list(store.list("packs"))
    with pytest.raises(ObjectMissing):
        store.get(PACK)
    assert upload.commit()
    assert store.get(PACK) == b"hello world!!"
    upload.abandon()
    assert files(store) == [PACK]


def test_an_abandoned_upload_leaves_nothing(store: DirectoryStore) -> None:
    upload = store.upload(LEASE)
    upload.write([b"data"], 0)
    upload.abandon()
    upload.abandon()
    assert files(store) == []


def test_writes_that_the_system_cuts_short_are_continued(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda handle, buffers, offset: real(handle, [b"".join(buffers)[:7]], offset))
    buffers = [random_bytes(length, length) for length in (1, 20, 7, 3, 0, 100)] + [b""]
    upload = store.upload("repository.json")
    upload.write(buffers, 5)
    upload.commit()
    assert store.get("repository.json") == bytes(5) + b"".join(buffers)


def test_many_small_buffers_are_written_all(store: DirectoryStore) -> None:
    buffers = [bytes([number % 256]) * (number % 5) for number in range(3000)]
    upload = store.upload("repository.json")
    upload.write(buffers, 0)
    upload.commit()
    assert store.get("repository.json") == b"".join(buffers)


def test_a_listing_that_fails_halfway_is_an_error_and_never_a_short_list(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(f"{POINT}/manifest.json", b"x")
    store.put(f"{OTHER_POINT}/manifest.json", b"x")
    real = os.scandir

    def scandir(folder: int) -> Any:
        if os.readlink(f"/proc/self/fd/{folder}").endswith(OTHER_POINT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        RepositoryError, match=rf"Cannot list .*/{OTHER_POINT}: Permission denied\. Check owner and mode"
    ):
        list(store.list("points"))


def test_deleting_takes_the_object_and_its_empty_folder_and_forgives_a_missing_one(store: DirectoryStore) -> None:
    store.put(f"{POINT}/a", b"x")
    store.put(f"{POINT}/b", b"x")
    store.delete(f"{POINT}/a")
    assert files(store) == [f"{POINT}/b"]
    store.delete(f"{POINT}/b")
    assert not (Path(store.location) / POINT).exists()
    store.delete(f"{POINT}/b")
    store.delete(MISSING)


@pytest.mark.parametrize("operation", ["get", "size"])
def test_a_missing_object_is_missing(store: DirectoryStore, operation: str) -> None:
    with pytest.raises(ObjectMissing, match=r"Cannot read .*/leases/f{16}: it does not exist"):
        getattr(store, operation)(MISSING)
    with pytest.raises(ObjectMissing):
        store.get_range(MISSING, 0, 1)


CAUSES = {
    errno.ENOSPC: "No space left on device. Free space there, or choose another repository.",
    errno.EDQUOT: "Disk quota exceeded. Free space there, or choose another repository.",
    errno.EACCES: "Permission denied. Check owner and mode of the directory and how it is mounted.",
    errno.EROFS: "Read-only file system. Check owner and mode of the directory and how it is mounted.",
    errno.EIO: "Input/output error. Check the storage below it.",
}


@pytest.mark.parametrize("number", CAUSES, ids=[errno.errorcode[number] for number in CAUSES])
@pytest.mark.parametrize("call", ["pwritev", "fsync", "rename"])
def test_a_write_that_fails_says_why_and_what_to_do_and_leaves_no_object(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    store.put(LEASE, b"x")
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(RepositoryError) as caught:
        store.put(OTHER_LEASE, b"data")
    assert str(caught.value) == f"Cannot write {store.location}/{OTHER_LEASE}: {CAUSES[number]}"
    assert files(store) == [LEASE]


def test_a_failure_repeated_on_close_does_not_replace_the_original_error(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS and FUSE do: what could not be written is told when the file is closed, too."""
    closed: list[int] = []

    def close(handle: int, real: Any = os.close) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        real(handle)
        if "/tmp/" in path and "repository/tmp/" in path:
            closed.append(handle)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    upload = store.upload(LEASE)
    upload.write([b"data"], 0)
    with monkeypatch.context() as changed:
        changed.setattr(os, "close", close)
        changed.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(RepositoryError, match="Cannot write .*/leases/0+: No space left on device"):
            upload.commit()
        upload.abandon()
        upload.abandon()
    assert len(closed) == 1
    assert files(store) == []


def test_a_read_that_fails_says_why(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("repository.json", b"data")
    monkeypatch.setattr(os, "pread", failing(errno.EIO))
    with pytest.raises(
        RepositoryError, match="Cannot read .*/repository.json: Input/output error. Check the storage below it."
    ) as caught:
        store.get_range("repository.json", 0, 4)
    assert not isinstance(caught.value, ObjectMissing)


def test_a_commit_syncs_the_file_first_and_its_folder_afterwards(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(LEASE, b"x")
    steps: list[str] = []
    for call in ("fsync", "rename"):
        real = getattr(os, call)
        monkeypatch.setattr(
            os,
            call,
            lambda *arguments, call=call, real=real, **options: (steps.append(call), real(*arguments, **options))[1],
        )
    store.put(OTHER_LEASE, b"data")
    assert steps == ["fsync", "rename", "fsync"]


def test_a_folder_deleted_as_empty_by_another_process_comes_back_for_the_next_object(store: DirectoryStore) -> None:
    store.put(PACK, b"x")
    DirectoryStore(store.location).delete(PACK)
    store.put(OTHER_PACK, b"y")
    assert store.get(OTHER_PACK) == b"y"


def test_a_folder_deleted_as_empty_during_an_upload_is_recreated_for_the_object(store: DirectoryStore) -> None:
    store.put(PACK, b"x")
    upload = store.upload(OTHER_PACK)
    upload.write([b"y"], 0)
    DirectoryStore(store.location).delete(PACK)
    upload.commit()
    assert store.get(OTHER_PACK) == b"y"


def test_leftovers_of_killed_processes_are_swept_and_files_in_use_are_kept(store: DirectoryStore) -> None:
    upload = store.upload(LEASE)
    upload.write([b"data"], 0)
    used = files(store)
    folder = Path(store.location) / "tmp"
    (folder / f"{socket.gethostname()}-{'0' * 16}").write_bytes(b"half")
    (folder / f"elsewhere-{'0' * 16}").write_bytes(b"of another host, whose locks may not be seen here")
    DirectoryStore(store.location).sweep()
    assert files(store) == sorted([*used, f"tmp/elsewhere-{'0' * 16}"])
    assert upload.commit()
    assert store.get(LEASE) == b"data"


def test_a_sweep_of_an_empty_store_succeeds(store: DirectoryStore) -> None:
    store.sweep()
    assert not os.path.exists(store.location)
