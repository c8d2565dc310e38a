# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository's hooks in local files, by key.

The files are a cache that processes of this host share. They may be lost, old, wrong or unusable: that costs space in the
repository and nothing else, since whoever is told of a pack reads and proves its directory. A file appears whole and is never
changed; one process at a time adds some and merges them, and what it did stays when it is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
import typing as t

from ...errors import DamagedObject, ObjectMissing
from ...parallel import map_all
from ..format import hooks, names
from ..format.hooks import PackHooks
from ..format.packs import PackRef
from ..repository import Repository
from .segments import MAX_PACKS, Gathered, Segment, Unusable, merge

_FILE = re.compile(r"(\d{12})-[0-9a-f]{8}\.hooks")
_LOCK = "lock"
_WAIT = 20  # seconds until another process that fills the index is no longer waited for
_LOOK = 0.05  # seconds between looks whether it has ended
_AT_ONCE = 16  # objects fetched before they are taken in
_HOOKS = 1 << 19  # of one file, as long as none are merged: that many are sorted in memory
_SOURCES = 1024  # of one file, likewise: what a killed process loses
_FEW = 8  # files; each is looked into for every block that could be a hook
_UNUSABLE = (Unusable, OSError, LookupError, ValueError)  # all that a file with any content can bring about


def cache_folder() -> str:
    """Where programs of this user keep what may be lost."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(chosen):  # counts as unset, by the XDG Base Directory Specification
        chosen = "/var/cache" if os.geteuid() == 0 else os.path.expanduser("~/.cache")
    return os.path.join(chosen, "kvm.cbt")


class HookIndex:
    """The hooks of a repository, or with ``domain`` of one domain's packs in it.

    ``failure`` is why it cannot be used; then nothing is found.
    """

    def __init__(self, repository: Repository, domain: str | None = None, folder: str | None = None) -> None:
        self._repository = repository
        self._prefix = names.hooks_folder(domain)
        self._folder = os.path.join(folder or cache_folder(), f"{repository.id}-{domain}" if domain else repository.id)
        self._gone: dict[
            str, set[int]
        ] = {}  # by file, the numbers of sources that the repository does not have any more
        self.failure: str | None = None

    def refresh(self) -> None:
        """Take in the hooks that were added to the repository and forget those that are gone. Raises RepositoryError."""
        listed = set(self._repository.store.list(self._prefix))
        with self._explained():
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with self._locked() as mine:
                if mine:
                    self._update(listed)
            with self._opened() as segments:
                self._gone = {
                    each.path: {number for number, name in enumerate(each.sources()) if name not in listed}
                    for each in segments
                }

    @contextlib.contextmanager
    def lookup(self) -> t.Iterator[t.Callable[[t.Iterable[bytes]], t.Iterator[PackRef]]]:
        """A function for one thread that gives the packs which hold blocks like these nearby."""
        with contextlib.ExitStack() as stack:
            segments: list[Segment] = []
            with self._explained():
                segments = stack.enter_context(self._opened())

            def find(block_ids: t.Iterable[bytes]) -> t.Iterator[PackRef]:
                for key in map(hooks.key_of, block_ids):
                    yield from self._near(segments, key)

            yield find

    def _near(self, segments: list[Segment], key: int) -> list[PackRef]:
        """What the latest file that knows a hook tells."""
        for segment in reversed(segments):
            try:
                found = segment.near(key, self._gone.get(segment.path, ()))
            except _UNUSABLE as error:
                self.failure = f"{segment.path}: {error}"
                _remove(segment.path)
                segments.remove(segment)
                return []
            if found:
                return found
        return []

    def packs(self) -> t.Iterator[tuple[str, bytes]]:
        """The packs whose hooks it holds: names of the objects they come from, and ids. Ends early if there is a failure."""
        with self._explained(), self._opened() as segments:
            for segment in segments:
                sources, gone = segment.sources(), self._gone.get(segment.path, ())
                yield from ((sources[source], ref.id) for ref, source in segment.refs() if source not in gone)

    @contextlib.contextmanager
    def _explained(self) -> t.Iterator[None]:
        try:
            yield
        except _UNUSABLE as error:
            self.failure = f"{self._folder}: {error}"

    # Files.

    @contextlib.contextmanager
    def _locked(self) -> t.Iterator[bool]:
        """False inside the block if another process fills the index; what that has will do."""
        with open(os.path.join(self._folder, _LOCK), "ab") as file:
            end = time.monotonic() + _WAIT
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() < end:
                        time.sleep(_LOOK)
                        continue
                    yield False
                    return
                yield True  # the lock goes with the file, however this process ends
                return

    def _paths(self) -> list[str]:
        """The files in the order in which they were made."""
        return [os.path.join(self._folder, name) for name in sorted(filter(_FILE.fullmatch, os.listdir(self._folder)))]

    @contextlib.contextmanager
    def _opened(self) -> t.Iterator[list[Segment]]:
        """All files, the latest last, without those that cannot be used; these are removed."""
        with contextlib.ExitStack() as stack:
            found: list[Segment] = []
            for path in self._paths():
                try:
                    found.append(stack.enter_context(contextlib.closing(Segment(path))))
                except FileNotFoundError:
                    continue  # merged meanwhile: some hooks will not be found
                except Unusable:
                    _remove(path)
            yield found

    def _new(self, write: t.Callable[[str], None]) -> None:
        """Let a file appear, written by ``write``."""
        last = max((int(os.path.basename(path)[:12]) for path in self._paths()), default=0)
        path = os.path.join(self._folder, f"{last + 1:012d}-{secrets.token_hex(4)}.hooks")
        partial = f"{path}.partial"
        try:
            write(partial)
            os.rename(partial, path)
        except BaseException:
            _remove(partial)
            raise

    # Filling.

    def _update(self, listed: set[str]) -> None:
        for name in os.listdir(self._folder):
            if name != _LOCK and not _FILE.fullmatch(name):
                _remove(os.path.join(self._folder, name))  # of a process that was killed
        missing = sorted(listed - self._known(listed))
        gathered = Gathered()
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            for name, data in zip(some, map_all(self._fetch, some)):
                gathered.add(name, _decoded(name, data))
                if len(gathered.entries) >= _HOOKS or len(gathered.sources) >= _SOURCES:
                    self._new(gathered.write)
                    gathered = Gathered()
        if gathered.sources:
            self._new(gathered.write)
        self._merge(listed)

    def _known(self, listed: set[str]) -> set[str]:
        """The sources that were taken in; files that hold nothing that is listed and not in later ones, or cannot be used, are removed."""
        known: set[str] = set()
        with self._opened() as segments:
            for segment in reversed(segments):
                try:
                    sources = segment.sources()
                except _UNUSABLE:
                    _remove(segment.path)
                    continue
                if known.issuperset(listed.intersection(sources)):
                    _remove(segment.path)
                known.update(sources)
        return known

    def _fetch(self, name: str) -> bytes:
        try:
            return self._repository.get_object(name)
        except (DamagedObject, ObjectMissing):
            return b""  # holds no hooks

    def _merge(self, listed: set[str]) -> None:
        with self._opened() as segments:
            chosen = to_merge([each.entries for each in segments], [each.packs for each in segments])
            if not chosen:
                return
            parts = [segments[index] for index in chosen]
            self._new(lambda path: merge(parts, listed.__contains__, path))
            for segment in parts:
                _remove(segment.path)


def to_merge(entries: t.Sequence[int], packs: t.Sequence[int]) -> list[int]:
    """Which files, by their numbers of entries and packs, are made one: the smallest, once there are more than a few.

    The next larger one is among them unless it is larger by far, so that an entry is written again only when it comes into
    a file at least a third larger.
    """
    if len(entries) <= _FEW:
        return []
    chosen: list[int] = []
    for index in sorted(range(len(entries)), key=entries.__getitem__):
        larger = len(chosen) >= 2 and entries[index] > 2 * sum(entries[each] for each in chosen)
        if larger or packs[index] + sum(packs[each] for each in chosen) > MAX_PACKS:
            break
        chosen.append(index)
    return sorted(chosen) if len(chosen) >= 2 else []


def _decoded(name: str, data: bytes) -> t.Sequence[PackHooks]:
    try:
        return hooks.decode(data, name)
    except DamagedObject:
        return ()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
