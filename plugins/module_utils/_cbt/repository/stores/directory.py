# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects as files below a directory: local, NFS or CephFS.

Nothing below the directory is trusted. No link is followed and only regular files are read. Only files with the name of
an object are read, written, listed or deleted.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import itertools
import os
import secrets
import socket
import stat
import threading
import typing as t

from ...errors import DamagedObject, ObjectMissing, ReadOnly, Refused, RepositoryError, StorageFull
from ...files import Buffer, NoLockGranted, ParallelFile, exists, lock, rename_new
from ..format import names
from . import folders, mounts, reserve
from .base import Entry, Foreign, Upload, as_time, check_size, counted
from .folders import WrongKind
from .reserve import Reserve

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ATTEMPTS = 5  # at creating a folder that other processes delete as empty
_LOCKABLE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # NFS locks only a file that is open for writing


def _advice(error: OSError) -> str:
    if isinstance(error, NoLockGranted):
        return (
            "Check the lock manager of the file system (for NFS 3, lockd and statd of server and client, and the"
            " firewall), or mount it with NFS 4."
        )
    if error.errno in _FULL:
        return "Free space there, or choose another repository."
    if error.errno in _FORBIDDEN:
        return "Check owner and mode of the directory and how it is mounted."
    return "Check the storage below it."


class _Stale(RepositoryError):
    """Another host deleted a file or folder while it was open."""


_Request = t.TypeVar("_Request", bound=t.Callable[..., t.Any])


def _repeated(request: _Request) -> _Request:
    """Repeat a request if another host deleted the open file, which then does not exist or is a new one."""

    @functools.wraps(request)
    def twice(*arguments: t.Any, **options: t.Any) -> t.Any:
        with contextlib.suppress(_Stale):
            return request(*arguments, **options)
        return request(*arguments, **options)

    return t.cast(_Request, twice)


def _failure(what: str, error: OSError) -> type[RepositoryError]:
    if error.errno in _FULL:
        return StorageFull
    if error.errno == errno.ESTALE:
        return _Stale
    return ReadOnly if what == "write" and error.errno in _FORBIDDEN else RepositoryError


@contextlib.contextmanager
def _explained(what: str, path: str) -> t.Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"Cannot {what} {path}: it does not exist.") from error
    except WrongKind as error:
        kind = DamagedObject if what == "read" else RepositoryError
        raise kind(
            f"Cannot {what} {path}: {error}. Links below a repository are not followed. Move it away."
        ) from error
    except OSError as error:
        raise _failure(what, error)(f"Cannot {what} {path}: {error.strerror}. {_advice(error)}") from error


def _locked_temporary(folder: int) -> tuple[int, str]:
    """Create a temporary file, open it and lock it (flock).

    The lock is held while the file is open. It distinguishes the file from one that a killed process left.
    """
    while True:
        name = names.temporary(socket.gethostname(), secrets.token_hex(8))
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with contextlib.suppress(OSError):  # modes cannot be changed
            os.fchmod(handle, 0o600)  # the umask may have cleared bits
        try:
            # Without locks, no process can take it for an abandoned one either. The number of its links may be wrong.
            if not lock(handle) or exists(name, folder):
                return handle, name
        except NoLockGranted:
            os.unlink(name, dir_fd=folder)
            os.close(handle)
            raise
        os.close(handle)  # another process swept it before it was locked


class _FileUpload:
    """A temporary file that becomes the object: write, sync, rename, sync the folder."""

    def __init__(self, store: DirectoryStore, name: str) -> None:
        self._store, self._path = store, store.path(name)
        self._folder, _slash, self._name = name.rpartition("/")
        with _explained("write", self._path), store.folder(names.TEMPORARY, make=True) as temporary:
            self._handle, self._temporary = _locked_temporary(temporary)
        self._file = ParallelFile(self._handle)

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        with _explained("write", self._path):
            self._file.write(buffers, offset)

    def commit(self, replace: bool = True) -> bool:
        with _explained("write", self._path):
            os.fsync(self._handle)
            with self._store.folder(names.TEMPORARY) as temporary:
                for attempt in range(_ATTEMPTS):
                    try:
                        appeared = self._appear(temporary, replace)
                        break
                    except FileNotFoundError:
                        # The process that deleted the last object in the folder removed the folder too.
                        if attempt + 1 == _ATTEMPTS:
                            raise
        if appeared:
            self._close()
        return appeared

    def _appear(self, temporary: int, replace: bool) -> bool:
        with self._store.folder(self._folder, make=True) as folder:
            if replace:
                os.rename(self._temporary, self._name, src_dir_fd=temporary, dst_dir_fd=folder)
            elif not rename_new(self._temporary, self._name, temporary, folder):
                return False
            folders.sync_folder(folder)
            return True

    def abandon(self) -> None:
        if self._handle >= 0:
            with contextlib.suppress(OSError), self._store.folder(names.TEMPORARY) as temporary:
                os.unlink(self._temporary, dir_fd=temporary)
            self._close()

    def _close(self) -> None:
        # A failed close closes the handle all the same, and the number may then belong to another file.
        handle, self._handle = self._handle, -1
        with contextlib.suppress(OSError):  # NFS reports write errors again here; the content was synced
            os.close(handle)


class DirectoryStore:
    """Objects as files below a directory: local, NFS or CephFS. Nothing is locked against deletion."""

    open_uploads: int | None = None

    def __init__(self, root: str) -> None:
        self.location = root
        self.local_path: str | None = root
        self.foreign = Foreign(root)
        self.reserve = Reserve(self._keep_reserve)
        # Files that may be deleted to make room, and their number at first.
        self._rooms: tuple[int, list[str]] | None = None
        self._lock = threading.Lock()

    def path(self, name: str) -> str:
        """Return the path of an object, for messages. Raises DamagedObject if the name is not an object's."""
        return os.path.join(self.location, names.check_object(name))

    def folder(self, name: str, make: bool = False) -> t.ContextManager[int]:
        """Open a folder of the store, creating it with ``make``. Raises OSError or WrongKind."""
        return folders.opened(self.location, name, make)

    def upload(self, name: str) -> Upload:
        return _FileUpload(self, name)

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        while True:
            try:
                return self._put(name, data, replace)
            except StorageFull:
                if not self._make_room():
                    raise

    def _make_room(self) -> bool:
        """Delete a part of the reserve, or else an expendable object. Return False if none may be deleted."""
        if self.reserve.spare is None:
            return False
        with self._lock:
            self.reserve.was_used = True
            if self._rooms is None:
                others = itertools.islice(
                    itertools.chain.from_iterable(map(self.list, names.EXPENDABLE)), reserve.PARTS
                )
                rooms = [*others, *reserve.parts(self.location)]
                self._rooms = len(rooms), rooms
            count, rooms = self._rooms
            if len(rooms) <= count * self.reserve.spare:
                return False
            name = rooms.pop()
        if names.is_object(name):
            self.delete(name)
        else:
            reserve.release(self.location, name)
        return True

    def _keep_reserve(self) -> None:
        reserve.keep(self.location)
        self._rooms = None

    def _put(self, name: str, data: bytes, replace: bool) -> bool:
        upload = self.upload(name)
        try:
            upload.write([data], 0)
            return upload.commit(replace)
        finally:
            upload.abandon()

    def swap(self, name: str, before: bytes, after: bytes) -> bool:
        folder, _slash, last = name.rpartition("/")
        try:
            with _explained("write", self.path(name)), self.folder(folder) as inside, _locked(inside, last) as stands:
                return stands() and self.get(name) == before and self.put(name, after)
        except ObjectMissing:
            return False

    @contextlib.contextmanager
    def _reading(self, name: str) -> t.Iterator[tuple[int, int]]:
        """Open an object. Yields its handle and its size in bytes."""
        path = self.path(name)
        folder, _slash, last = name.rpartition("/")
        with (
            _explained("read", path),
            self.folder(folder) as inside,
            folders.reading(inside, last, path) as (handle, found),
        ):
            yield handle, found.st_size

    @_repeated
    def get(self, name: str, most: int | None = None) -> bytes:
        with self._reading(name) as (handle, size):
            check_size(self.path(name), name, size, most)
            data = _read(handle, size + 1, 0)
            if len(data) <= size:
                return data
        raise DamagedObject(f"{self.path(name)} is damaged: it grows while it is read")

    @_repeated
    def get_range(self, name: str, offset: int, length: int) -> bytes:
        with self._reading(name) as (handle, size):
            return _read(handle, min(length, max(0, size - offset)), offset)

    def _status(self, name: str) -> os.stat_result:
        path = self.path(name)
        folder, _slash, last = name.rpartition("/")
        with _explained("read", path), self.folder(folder) as inside:
            return folders.status(inside, last, path)

    def size(self, name: str) -> int:
        return self._status(name).st_size

    def modified(self, name: str) -> float:
        return as_time(self._status(name).st_mtime)

    def list(self, prefix: str) -> t.Iterator[str]:
        return (name for name, _status in self._walk(prefix, with_status=False))

    def entries(self, prefix: str) -> t.Iterator[Entry]:
        found = self._walk(prefix, with_status=True)
        return (Entry(name, known.st_size, as_time(known.st_mtime)) for name, known in found if known is not None)

    def _walk(self, prefix: str, with_status: bool) -> t.Iterator[tuple[str, os.stat_result | None]]:
        waiting, seen = [names.check_folder(prefix)], 0
        while waiting:
            inner, found = self._look(waiting.pop(), with_status, seen)
            seen += len(inner) + len(found)
            waiting += inner
            yield from found

    @_repeated
    def _look(
        self, here: str, with_status: bool, before: int
    ) -> tuple[builtins.list[str], builtins.list[tuple[str, os.stat_result | None]]]:
        """Return the folders and the objects in a folder.

        Files whose names are not an object's are foreign. Raises WrongKind if something other than a file has an
        object's name: a listing that skips an object a restore point needs would be taken for complete. All entries
        count, after ``before`` others, while they are read: an endless folder fails before it uses all memory.
        """
        inner: list[str] = []
        found: list[tuple[str, os.stat_result | None]] = []
        path = os.path.join(self.location, here)
        with contextlib.suppress(ObjectMissing), _explained("list", path), self.folder(here) as folder:
            for each in counted(folders.contents(folder, with_status), here, self.location, before):
                name = f"{here}/{each.name}"
                if names.is_object(name):
                    if not each.file:
                        raise WrongKind(f"{os.path.join(self.location, name)} is {each.kind} and not a file")
                    found.append((name, each.status))
                elif names.is_folder(name):
                    inner.append(name)  # if it is not a folder, opening it fails
                else:
                    self.foreign.add(name)
        return inner, found

    def delete(self, name: str) -> None:
        path = self.path(name)
        folder, _slash, last = name.rpartition("/")
        with contextlib.suppress(ObjectMissing), _explained("delete", path), self.folder(folder) as inside:
            folders.status(inside, last, path)
            os.unlink(last, dir_fd=inside)
        above, _slash, inner = folder.rpartition("/")
        with contextlib.suppress(OSError), self.folder(above) as outside:
            os.rmdir(inner, dir_fd=outside)  # removes only an empty folder

    def locked_until(self, name: str) -> float | None:
        return None

    def protect(self, objects: t.Iterable[str], like: str) -> None:
        pass

    def occupants(self) -> set[str]:
        if not os.path.lexists(self.location):
            return set()
        if not os.path.isdir(self.location):
            raise RepositoryError(f"The repository {self.location} is not a directory.")
        with _explained("list", self.location):
            # An interrupted creation, a new file system or an emptied repository leaves these.
            return set(os.listdir(self.location)) - {names.TEMPORARY, names.RESERVE, "lost+found"}

    def check_creatable(self) -> None:
        point = mounts.missing_mount(self.location)
        if point is not None:
            raise Refused(
                f"Cannot create a repository in {self.location}: {point} is in {mounts.FSTAB} but not mounted."
                " Mount it, or use another path."
            )

    def addresses(self) -> builtins.list[str]:
        return mounts.addresses(self.location)

    def try_out(self) -> builtins.list[str]:
        from . import trial  # loaded only to create a repository

        with _explained("write", self.location), self.folder(names.TEMPORARY, make=True) as temporary:
            return trial.try_out(temporary, self.location, DirectoryStore)

    def advice(self) -> str:
        point = mounts.missing_mount(self.location)
        if point is not None:
            return f"{point} is in {mounts.FSTAB} but not mounted: mount it."
        return "If it is on a share, check that the right share is mounted."

    def sweep(self) -> None:
        host = socket.gethostname()
        with contextlib.suppress(OSError), self.folder(names.TEMPORARY) as folder:
            found = [each.name for each in folders.contents(folder) if each.file]
            left = [name for name in found if names.is_temporary(name, host)]
            for name in left if left and _locks_exclude(folder) else ():
                with contextlib.suppress(OSError):  # deleted by another process, or locked: in use
                    _remove_unlocked(folder, name)


def _read(handle: int, length: int, offset: int) -> bytes:
    """Read a range of a file, shorter only at its end. A file system may return less at a time."""
    pieces: list[bytes] = []
    while length:
        piece = os.pread(handle, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextlib.contextmanager
def _locked(folder: int, name: str) -> t.Iterator[t.Callable[[], bool]]:
    """Lock a file if the file system has locks. The function yielded returns whether the name is still this file's."""
    handle = os.open(name, _LOCKABLE, dir_fd=folder)
    try:
        lock(handle)
        yield lambda: os.path.samestat(os.fstat(handle), os.stat(name, dir_fd=folder, follow_symlinks=False))
    finally:
        os.close(handle)


def _locks_exclude(folder: int) -> bool:
    from . import trial  # loaded only if a killed run left files

    return trial.locks_exclude(folder)


def _remove_unlocked(folder: int, name: str) -> None:
    handle = os.open(name, _LOCKABLE, dir_fd=folder)
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode) and lock(handle, wait=False):
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(handle)
