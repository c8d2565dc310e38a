# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository's hooks in local files, by key.

The files are a cache that processes of this host share. If they are lost, old, wrong or unusable, that costs space in
the repository and nothing else, since a pack's directory is read and checked before its blocks are used. A file appears
complete and never changes. One process at a time adds and merges files, and its finished files stay if it is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
import typing as t

from ...errors import UnreadableObject
from ...parallel import map_all
from ..format import hooks, names
from ..format.hooks import PackHooks
from ..format.packs import PackRef
from ..repository import Repository
from .segments import MAX_PACKS, Gathered, Segment, Unusable, merge

_FILE = re.compile(r"(\d{12})-[0-9a-f]{8}\.hooks")
_LOCK = "lock"
_WAIT = 20  # seconds to wait for another process that fills the index
_LOOK = 0.05  # seconds between attempts to take the lock
_AT_ONCE = 16  # objects fetched before they are added
_HOOKS = 1 << 19  # limit of one file before merging: these are sorted in memory
_SOURCES = 1024  # limit of one file before merging: a killed process loses these
_FEW = 8  # files; each is searched for every block that could be a hook
_UNUSABLE = (Unusable, OSError, LookupError, ValueError)  # all errors that a file with arbitrary content can cause


def cache_folder() -> str:
    """Return the folder for the cached files of this user."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(chosen):  # counts as unset, by the XDG Base Directory Specification
        chosen = "/var/cache" if os.geteuid() == 0 else os.path.expanduser("~/.cache")
    return os.path.join(chosen, "kvm.cbt")


class HookIndex:
    """The hooks of a repository, or with ``domain`` of one domain's packs in it.

    ``failure`` is the reason why the index cannot be used. Nothing is found then.
    """

    def __init__(self, repository: Repository, domain: str | None = None) -> None:
        self._repository = repository
        self._prefix = names.hooks_folder(domain)
        self._folder = os.path.join(cache_folder(), f"{repository.id}-{domain}" if domain else repository.id)
        self._gone: dict[
            str, set[int]
        ] = {}  # by file, the numbers of sources that the repository does not have any more
        self.failure: str | None = None

    def refresh(self) -> None:
        """Add hooks that are new in the repository and forget deleted ones. Raises RepositoryError."""
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
        """Yield a function for one thread that returns packs with blocks like these."""
        with contextlib.ExitStack() as stack:
            segments: list[Segment] = []
            with self._explained():
                segments = stack.enter_context(self._opened())

            def find(block_ids: t.Iterable[bytes]) -> t.Iterator[PackRef]:
                for key in map(hooks.key_of, block_ids):
                    yield from self._near(segments, key)

            yield find

    def _near(self, segments: list[Segment], key: int) -> list[PackRef]:
        """Return the packs from the latest file that has this hook."""
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
        """Yield the packs: the name of the object with their hooks, and their id.

        Ends early on a failure.
        """
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
        """Yield False if another process fills the index: its current content suffices."""
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
                yield True  # the kernel releases the lock with the file, however this process ends
                return

    def _paths(self) -> list[str]:
        """Return the files in the order of their creation."""
        return [os.path.join(self._folder, name) for name in sorted(filter(_FILE.fullmatch, os.listdir(self._folder)))]

    @contextlib.contextmanager
    def _opened(self) -> t.Iterator[list[Segment]]:
        """Yield all usable files, the latest last. Removes unusable files."""
        with contextlib.ExitStack() as stack:
            found: list[Segment] = []
            for path in self._paths():
                try:
                    found.append(stack.enter_context(contextlib.closing(Segment(path))))
                except FileNotFoundError:
                    continue  # merged by another process: some hooks will not be found
                except Unusable:
                    _remove(path)
            yield found

    def _new(self, write: t.Callable[[str], None]) -> None:
        """Create a file with ``write``. It appears only when it is complete."""
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
                _remove(os.path.join(self._folder, name))  # a partial file of a process that was killed
        missing = sorted(listed - self._known(listed))
        gathered = Gathered()
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            for name, found in zip(some, map_all(self._hooks_in, some)):
                gathered.add(name, found)
                if len(gathered.entries) >= _HOOKS or len(gathered.sources) >= _SOURCES:
                    self._new(gathered.write)
                    gathered = Gathered()
        if gathered.sources:
            self._new(gathered.write)
        self._merge(listed)

    def _known(self, listed: set[str]) -> set[str]:
        """Return the sources that were added.

        Removes unusable files, and files of which every listed source is in a later file or none is listed.
        """
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

    def _hooks_in(self, name: str) -> t.Sequence[PackHooks]:
        try:
            return hooks.decode(self._repository.get_object(name), name)
        except UnreadableObject:
            return ()

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
    """Choose the files to merge, by their numbers of entries and packs.

    If there are more than a few files, these are the smallest two and each next larger one, as long as it has at most
    twice the entries of those before it, so that large files are rarely written again.
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


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
