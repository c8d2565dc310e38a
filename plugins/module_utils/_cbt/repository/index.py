# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository's hooks in a local file, by key. Private to the collection.

The file is a cache that processes of this host share. It may be lost, old, wrong or unusable: that costs space in the
repository and nothing else, since whoever is told of a pack reads and proves its directory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import struct
import typing as t

from ..errors import DamagedObject, ObjectMissing
from ..side_by_side import side_by_side
from . import hooks
from .hooks import PackHooks
from .packs import PackRef
from .repository import Repository

_SCHEMA = 1
_TABLES = """
    CREATE TABLE source (number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
    CREATE TABLE pack (number INTEGER PRIMARY KEY, source INTEGER NOT NULL, ref BLOB NOT NULL);
    CREATE TABLE hook (key INTEGER PRIMARY KEY, pack INTEGER NOT NULL);
"""
# The pack of a hook and the one written after it, for a disk that is read in order goes on there.
_NEAR = """
    SELECT near.ref FROM hook JOIN pack AS hit ON hit.number = hook.pack
    JOIN pack AS near ON near.number BETWEEN hit.number AND hit.number + 1 AND near.source = hit.source WHERE hook.key = ?
"""
_REF = struct.Struct("<16sQI")
_WAIT = 20  # seconds until another process that fills the file is no longer waited for
_AT_ONCE = 64  # objects fetched before they are stored
_UNUSABLE = (sqlite3.Error, struct.error, TypeError, OSError)  # all that a file with any content can bring about


def cache_folder() -> str:
    """Where programs of this user keep what may be lost."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen is None:
        chosen = "/var/cache" if os.geteuid() == 0 else os.path.expanduser("~/.cache")
    return os.path.join(chosen, "kvm.cbt")


class HookIndex:
    """The hooks of a repository, or with ``domain`` of one domain's packs in it.

    ``failure`` is why it cannot be used; then nothing is found.
    """

    def __init__(self, repository: Repository, domain: t.Optional[str] = None, folder: t.Optional[str] = None) -> None:
        self._repository = repository
        self._prefix = f"{hooks.FOLDER}/{domain}" if domain else hooks.FOLDER
        name = f"{repository.id}-{domain}.sqlite" if domain else f"{repository.id}.sqlite"
        self._path = os.path.join(folder or cache_folder(), name)
        self.failure: t.Optional[str] = None

    def refresh(self) -> None:
        """Take in the hooks that were added to the repository and forget those that are gone. Raises RepositoryError."""
        listed = set(self._repository.store.list(self._prefix))
        try:
            try:
                self._update(listed)
            except _UNUSABLE as error:
                if _locked(error):
                    return  # another process fills it; what it has will do
                self._remove()
                self._update(listed)
        except _UNUSABLE as error:
            self.failure = f"{self._path}: {error}"

    @contextlib.contextmanager
    def lookup(self) -> t.Iterator[t.Callable[[t.Iterable[bytes]], t.Iterator[PackRef]]]:
        """A function for one thread that gives the packs which hold blocks like these nearby."""
        with contextlib.ExitStack() as stack:
            connection: t.Optional[sqlite3.Connection] = None
            try:
                connection = stack.enter_context(self._connected())
                connection.execute("BEGIN")  # one view for all questions spares locking the file for each
            except _UNUSABLE as error:
                self.failure = f"{self._path}: {error}"

            def find(block_ids: t.Iterable[bytes]) -> t.Iterator[PackRef]:
                if connection is None or self.failure is not None:
                    return
                try:
                    for block_id in block_ids:
                        for (ref,) in connection.execute(_NEAR, (hooks.key_of(block_id),)):
                            yield PackRef(*_REF.unpack(ref))
                except _UNUSABLE as error:
                    self.failure = f"{self._path}: {error}"
                    if not _locked(error):
                        self._remove()

            yield find

    def _remove(self) -> None:
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(OSError):
                os.unlink(self._path + suffix)

    def sources(self) -> t.Dict[str, t.Set[bytes]]:
        """By name of the object they come from, the ids of the packs whose hooks it holds. Empty if there was a failure."""
        found: t.Dict[str, t.Set[bytes]] = {}
        try:
            with self._connected() as connection:
                for name, ref in connection.execute("SELECT name, ref FROM pack JOIN source ON source.number = pack.source"):
                    found.setdefault(name, set()).add(_REF.unpack(ref)[0])
        except _UNUSABLE as error:
            self.failure = f"{self._path}: {error}"
        return found

    @contextlib.contextmanager
    def _connected(self) -> t.Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=_WAIT, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()

    def _update(self, listed: t.Set[str]) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        with self._connected() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA cache_size = -32768")
            with _transaction(connection):
                _prepare(connection)
                known = dict(connection.execute("SELECT name, number FROM source"))
                _forget(connection, [number for name, number in known.items() if name not in listed])
            missing = iter(sorted(listed.difference(known)))
            for names in iter(lambda: list(itertools.islice(missing, _AT_ONCE)), []):
                self._take_in(connection, names)

    def _take_in(self, connection: sqlite3.Connection, names: t.Sequence[str]) -> None:
        fetched = list(zip(names, side_by_side(self._fetch, names)))
        with _transaction(connection):
            for name, data in fetched:
                with contextlib.suppress(DamagedObject):
                    _insert(connection, name, hooks.decode(data, name))

    def _fetch(self, name: str) -> bytes:
        try:
            return self._repository.get_object(name)
        except (DamagedObject, ObjectMissing):
            return b""  # holds no hooks


def _locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> t.Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _prepare(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == _SCHEMA:
        return
    for table in ("source", "pack", "hook"):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in _TABLES.split(";")[:-1]:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {_SCHEMA}")


def _forget(connection: sqlite3.Connection, sources: t.Sequence[int]) -> None:
    if sources:
        connection.executemany("DELETE FROM source WHERE number = ?", ((number,) for number in sources))
        connection.execute("DELETE FROM pack WHERE source NOT IN (SELECT number FROM source)")
        connection.execute("DELETE FROM hook WHERE pack NOT IN (SELECT number FROM pack)")


def _insert(connection: sqlite3.Connection, name: str, found: t.Sequence[PackHooks]) -> None:
    source = connection.execute("INSERT OR IGNORE INTO source (name) VALUES (?)", (name,))
    if not source.rowcount:
        return  # another process was faster
    (first,) = connection.execute("SELECT coalesce(max(number), 0) + 1 FROM pack").fetchone()
    numbered = list(enumerate(found, first))
    packs = ((number, source.lastrowid, _REF.pack(each.ref.id, each.ref.size, each.ref.blocks)) for number, each in numbered)
    connection.executemany("INSERT INTO pack VALUES (?, ?, ?)", packs)
    keys = sorted((key, number) for number, each in numbered for key in each.keys)
    connection.executemany("INSERT OR REPLACE INTO hook VALUES (?, ?)", keys)
