"""A store in memory, whose objects a test may change as a failing disk would, and what else fails on demand."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from _cbt.errors import ObjectLocked, ObjectMissing, RepositoryError
from _cbt.repository.format import names
from _cbt.repository.stores.base import Entry, Foreign, check_size, counted
from _cbt.repository.stores.reserve import Reserve


class MemoryUpload:
    """An object in the making."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store, self._name = store, names.check_object(name)
        self._turn = threading.Lock()
        self._data = bytearray()

    def write(self, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> None:
        """Write at any place, in any order."""
        if self._store.full:
            raise RepositoryError(f"Cannot write {self._name}: No space left on device.")
        with self._turn:
            for buffer in buffers:
                missing = offset + len(buffer) - len(self._data)
                if missing > 0:
                    self._data.extend(bytes(missing))
                self._data[offset : offset + len(buffer)] = buffer
                offset += len(buffer)

    def commit(self, replace: bool = True) -> bool:
        """Let it appear."""
        self._store.uploads.discard(self)
        if not replace and self._name in self._store.objects:
            return False
        self._store.objects[self._name] = bytes(self._data)
        self._store.times[self._name] = self._store.clock
        if self._store.lock_for:
            self._store.locks[self._name] = self._store.clock + self._store.lock_for
        return True

    def abandon(self) -> None:
        """Forget it."""
        self._store.uploads.discard(self)


class MemoryStore:
    """Objects in a dictionary; ``uploads`` are those begun and neither committed nor abandoned, ``clock`` is set by the test.

    With ``lock_for`` every object is locked for that many seconds once it appears, as by a bucket's rule.
    """

    location = "memory"
    local_path = None
    open_uploads = None

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: set[MemoryUpload] = set()
        self.times: dict[str, float] = {}
        self.locks: dict[str, float] = {}
        self.clock = 1_000_000.0
        self.lock_for = 0.0
        self.full = False
        self.reserve = Reserve(keep=lambda: None)
        self.foreign = Foreign(self.location)
        self._turn = threading.Lock()

    def copy(self) -> MemoryStore:
        """Another one with the same objects."""
        made = MemoryStore()
        made.objects, made.times, made.locks, made.clock = (
            dict(self.objects),
            dict(self.times),
            dict(self.locks),
            self.clock,
        )
        return made

    def upload(self, name: str) -> MemoryUpload:
        """Begin an object."""
        upload = MemoryUpload(self, name)
        self.uploads.add(upload)
        return upload

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        """Store an object at once."""
        upload = self.upload(name)
        upload.write([data], 0)
        return upload.commit(replace)

    def swap(self, name: str, before: bytes, after: bytes) -> bool:
        """Replace an object that has these bytes."""
        with self._turn:
            return self.objects.get(name) == before and self.put(name, after)

    def get(self, name: str, most: int | None = None) -> bytes:
        """An object's bytes."""
        data = self._held(name)
        check_size(name, name, len(data), most)
        return data

    def _held(self, name: str) -> bytes:
        try:
            return self.objects[names.check_object(name)]
        except KeyError as error:
            raise ObjectMissing(f"Cannot read {name}: it does not exist.") from error

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """A part of an object."""
        return self._held(name)[offset : offset + length]

    def size(self, name: str) -> int:
        """Bytes of an object."""
        return len(self._held(name))

    def list(self, prefix: str) -> Iterator[str]:
        """Names below a folder."""
        return counted(self._ours(names.check_folder(prefix)), prefix, self.location)

    def _ours(self, prefix: str) -> Iterator[str]:
        for name in [each for each in list(self.objects) if each.startswith(f"{prefix}/")]:
            if names.is_object(name):
                yield name
            else:
                self.foreign.add(name)

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Objects below a folder."""
        return (Entry(name, len(self.objects[name]), self.times.get(name, 0.0)) for name in self.list(prefix))

    def modified(self, name: str) -> float:
        """When an object appeared."""
        self._held(name)
        return self.times.get(name, 0.0)

    def delete(self, name: str) -> None:
        """Delete an object, or do nothing."""
        names.check_object(name)
        if self.locked_until(name) is not None:
            raise ObjectLocked(f"Cannot delete {name}: the object lock keeps it.")
        self.objects.pop(name, None)

    def locked_until(self, name: str) -> float | None:
        """Until when it is locked."""
        until = self.locks.get(name, 0.0)
        return until if until > self.clock else None

    def protect(self, objects: Iterable[str], like: str) -> None:
        """Lock as long as another one is."""
        until = self.locked_until(like)
        for name in objects if until is not None else ():
            self.locks[name] = max(until, self.locks.get(name, 0.0))

    def occupants(self) -> set[str]:
        """First parts of the names there are."""
        return {name.split("/")[0] for name in self.objects}

    def check_creatable(self) -> None:
        """Nothing is mounted over memory."""

    def try_out(self) -> list[str]:
        """Memory has no odd rules."""
        return []

    def addresses(self) -> list[str]:
        """It has one."""
        return [self.location]

    def advice(self) -> str:
        """What can be checked."""
        return "Check the memory."

    def sweep(self) -> None:
        """Nothing is left of an upload that nobody holds."""


def with_bit_flipped(data: bytes, bit: int) -> bytes:
    """The same bytes but for one bit."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def failing(number: int) -> Callable[..., Any]:
    """A system call that fails with this errno."""

    def fail(*_arguments: object, **_options: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail
