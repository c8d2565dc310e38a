"""A store that fails at one call, or from one call on, as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from stores_for_tests import MemoryStore, MemoryUpload

from _cbt.errors import CbtError, RepositoryError
from _cbt.repository.stores.base import Entry

WRITING = ("upload", "write", "commit", "put")
FAULTS = ("error", "error for good", "answer lost", "half", "full", "kill")


class Killed(BaseException):
    """The process is no more: nothing reaches the store from now on."""


class Armed(Protocol):
    """What fails at a call as it is told; ``met`` is the call at which it did."""

    met: str

    def arm(self, fault: str, at: int) -> None:
        """Count anew, and fail there."""


class Tried(NamedTuple):
    """What came of it when call number ``at`` failed, which was ``met``, or nothing if there are fewer calls; ``where`` tells all of it."""

    at: int
    met: str
    outcome: str
    where: str


def outcome_of(act: Callable[[], object]) -> str:
    """How something ended: killed, done, or with which error."""
    try:
        act()
    except Killed:
        return "killed"
    except CbtError as error:
        assert str(error).endswith("."), "it is no sentence"
        return str(error)
    return "done"


def each_call(failing: Armed, fault: str, restore: Callable[[], None], act: Callable[[], object]) -> Iterator[Tried]:
    """Act again and again from the same beginning, while one call after another fails; the last time none does."""
    at, met = 0, "none yet"
    while met:
        at += 1
        restore()
        failing.arm(fault, at)
        outcome = outcome_of(act)
        met = failing.met
        failing.arm("", -1)
        yield Tried(at, met, outcome, f"{fault} at call {at} ({met}): {outcome}")


class FaultyUpload:
    """Counts and fails as its store does."""

    def __init__(self, store: FaultyStore, upload: MemoryUpload, name: str) -> None:
        self._store, self._upload, self._name = store, upload, name

    def write(self, buffers: Sequence[Any], offset: int) -> None:
        half = [bytes(buffers[0])[: len(buffers[0]) // 2]]
        self._store.call(
            "write", self._name, lambda: self._upload.write(buffers, offset), lambda: self._upload.write(half, offset)
        )

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
            raise RepositoryError(
                f"Cannot {what} {name}: {'No space left on device' if self.fault == 'full' else 'Input/output error'}."
            )
        return action()

    def upload(self, name: str) -> Any:
        return FaultyUpload(self, self.call("upload", name, lambda: super(FaultyStore, self).upload(name)), name)

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        def stored() -> bool:
            upload = MemoryUpload(self, name)
            upload.write([data], 0)
            return upload.commit(replace)

        return bool(self.call("put", name, stored))

    def get(self, name: str, most: int | None = None) -> bytes:
        return bytes(self.call("get", name, lambda: super(FaultyStore, self).get(name, most)))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self.get(name)[offset : offset + length]

    def list(self, prefix: str) -> Iterator[str]:
        return self._listed(prefix, list(super().list(prefix)))

    def entries(self, prefix: str) -> Iterator[Entry]:
        return self._listed(
            prefix, [Entry(name, len(self.objects[name]), self.times.get(name, 0.0)) for name in super().list(prefix)]
        )

    def _listed(self, prefix: str, found: list[Any]) -> Iterator[Any]:
        """What is found, the fault in the midst of it."""
        yield from found[: len(found) // 2]
        self.call("list", prefix, lambda: None)
        yield from found[len(found) // 2 :]

    def modified(self, name: str) -> float:
        return float(self.call("modified", name, lambda: self.times.get(name, 0.0)))

    def delete(self, name: str) -> None:
        self.call("delete", name, lambda: super(FaultyStore, self).delete(name))

    def protect(self, objects: Iterable[str], like: str) -> None:
        self.call("protect", like, lambda: super(FaultyStore, self).protect(objects, like))
