"""A store that fails at every single call of a backup: published points stay true, and nothing else is ever named."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import histories
import pytest
from engine_history import EngineHistory
from histories import KEYS
from stores_for_tests import MemoryStore, MemoryUpload

from _cbt.errors import CbtError, RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.repository import condemned, configuration
from _cbt.repository.stores import Entry

WRITING = ("upload", "write", "commit", "put")
FAULTS = ("error", "error for good", "answer lost", "half", "full", "kill")


class Killed(BaseException):
    """The process is no more: nothing reaches the store from now on."""


class FaultyUpload:
    """Counts and fails as its store does."""

    def __init__(self, store: FaultyStore, upload: MemoryUpload, name: str) -> None:
        self._store, self._upload, self._name = store, upload, name

    def write(self, buffers: Sequence[Any], offset: int) -> None:
        half = [bytes(buffers[0])[: len(buffers[0]) // 2]]
        self._store.call("write", self._name, lambda: self._upload.write(buffers, offset), lambda: self._upload.write(half, offset))

    def commit(self, replace: bool = True) -> bool:
        return bool(self._store.call("commit", self._name, lambda: self._upload.commit(replace)))

    def abandon(self) -> None:
        self._upload.abandon()


class FaultyStore(MemoryStore):
    """Fails in the way of ``fault`` at the call with number ``at``."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.arm("", -1)

    def arm(self, fault: str, at: int) -> None:
        """Count anew, and fail there."""
        self.fault, self.at, self.calls, self.met = fault, at, 0, ""

    def call(self, what: str, name: str, action: Any, half: Any = None) -> Any:
        """Carry a request out, or fail."""
        with self._lock:
            self.calls += 1
            now = self.calls == self.at
            after = bool(self.met)
            if now:
                self.met = f"{what} {name}"
        if (now or after) and self.fault == "kill":
            raise Killed
        if now or (after and (self.fault == "error for good" or (self.fault == "full" and what in WRITING))):
            if self.fault == "answer lost":
                action()
            elif self.fault == "half" and half is not None:
                half()
            elif self.fault == "full" and what not in WRITING:
                return action()
            raise RepositoryError(f"Cannot {what} {name}: {'No space left on device' if self.fault == 'full' else 'Input/output error'}.")
        return action()

    def upload(self, name: str) -> Any:
        return FaultyUpload(self, self.call("upload", name, lambda: super(FaultyStore, self).upload(name)), name)

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        def stored() -> bool:
            upload = MemoryUpload(self, name)
            upload.write([data], 0)
            return upload.commit(replace)

        return bool(self.call("put", name, stored))

    def get(self, name: str) -> bytes:
        return bytes(self.call("get", name, lambda: super(FaultyStore, self).get(name)))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self.get(name)[offset : offset + length]

    def list(self, prefix: str) -> Iterator[str]:
        return self._listed(prefix, list(super().list(prefix)))

    def entries(self, prefix: str) -> Iterator[Entry]:
        return self._listed(prefix, [Entry(name, len(self.objects[name]), self.times.get(name, 0.0)) for name in super().list(prefix)])

    def _listed(self, prefix: str, found: list[Any]) -> Iterator[Any]:
        """What is found, the fault in the midst of it."""
        yield from found[: len(found) // 2]
        self.call("list", prefix, lambda: None)
        yield from found[len(found) // 2 :]

    def modified(self, name: str) -> float:
        return float(self.call("modified", name, lambda: self.times.get(name, 0.0)))

    def delete(self, name: str) -> None:
        self.call("delete", name, lambda: super(FaultyStore, self).delete(name))

    def protect(self, names: Iterable[str], like: str) -> None:
        self.call("protect", like, lambda: super(FaultyStore, self).protect(names, like))


def run(history: EngineHistory, store: FaultyStore) -> str:
    """A backup; returns how it ended."""
    try:
        history.backup()
    except Killed:
        return "killed"
    except CbtError as error:
        assert str(error).endswith("."), "it is no sentence"
        return str(error)
    return "done"


def begun(keys: str, condemn: bool) -> tuple[EngineHistory, FaultyStore]:
    """A repository with two points and a disk with changes of every kind since; one pack may be on its way out."""
    history = EngineHistory(KEYS[keys])
    store = history.store = FaultyStore()
    store.objects[configuration.NAME] = b""
    for block in range(5):
        history.disk.write(block, block + 1)
    history.backup()
    history.disk.write(1, 20)
    history.backup()
    for block, number in ((0, 0), (1, 2), (2, 3), (5, 30), (6, 1), (7, 31)):
        history.disk.write(block, number)
    if condemn:
        packs = sorted(name for name in store.objects if name.startswith("packs/"))
        for name in packs:
            condemned.announce(history.repository, name)
    return history, store


@pytest.mark.parametrize("condemn", [False, True], ids=["", "condemned"])
@pytest.mark.parametrize("keys", KEYS)
def test_whatever_call_fails_in_whatever_way(keys: str, condemn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "BLOCKS", 8)
    monkeypatch.setattr(histories.Disk, "size", 8 * BLOCK_SIZE - 512)
    history, store = begun(keys, condemn)
    objects, times, dirty, truth, mark = dict(store.objects), dict(store.times), set(history.disk.dirty), dict(history.truth), history.at_mark
    seen = set()
    for fault in FAULTS:
        at = 0
        while True:
            at += 1
            store.objects, store.times = dict(objects), dict(times)
            history.truth, history.disk.dirty, history.at_mark = dict(truth), set(dirty), mark
            store.arm(fault, at)
            outcome = run(history, store)
            met, newest = store.met, max(history.truth)
            store.arm("", -1)
            if not met:
                break  # it has fewer calls
            seen.add(met.split()[0])
            where = f"{fault} at call {at} ({met}): {outcome}"
            published = {each.id for each in history.fresh().points_of().points}
            assert set(truth) <= published, where
            assert outcome != "done" or newest in published, where
            if fault in ("error", "answer lost", "half") and outcome != "done":
                assert newest not in published, where
            assert history.needed() <= set(store.objects), where
            assert not history.wrong(), where
            if at % 3 == 0:
                repaired(history, where)
        assert at > 20
    assert seen >= {"put", "get", "list", "upload", "write", "commit", "delete", "modified", "protect"}


def repaired(history: EngineHistory, where: str) -> None:
    """The next backup goes on, and once all is quiet, there is nothing that no point needs."""
    history.backup()
    history.collect()
    assert not history.wrong(), where
    left = {name for name in history.store.objects if name.startswith(("packs/", "points/", "drafts/", "doomed/", "condemned/"))}
    assert left == history.needed(), where
