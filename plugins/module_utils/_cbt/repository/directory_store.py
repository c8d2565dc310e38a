# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects as files below a directory: local, NFS or CephFS. Private to the collection."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
import typing as t

from ..errors import ObjectMissing, RepositoryError
from ..files import Buffer, ParallelFile, sync
from .stores import TEMPORARY, Entry, Upload


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free space there, or choose another repository."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Check owner and mode of the directory and how it is mounted."
    return "Check the storage below it."


@contextlib.contextmanager
def _explained(what: str, path: str) -> t.Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"Cannot {what} {path}: it does not exist.") from error
    except OSError as error:
        raise RepositoryError(f"Cannot {what} {path}: {error.strerror}. {_advice(error)}") from error


def _temporary_prefix() -> str:
    """How names of this host's temporary files begin: only on one host do locks tell for certain, whatever the file system."""
    return f"{socket.gethostname()}-"


def _locked_temporary(folder: str) -> t.Tuple[int, str]:
    """A new temporary file, open, and locked (flock) for as long as it is: that tells it from one left by a killed process."""
    while True:
        handle, path = tempfile.mkstemp(prefix=_temporary_prefix(), dir=folder)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            return handle, path  # a file system without locks: then nobody can take it for left over either
        if os.fstat(handle).st_nlink:
            return handle, path
        os.close(handle)  # swept between the two steps


class _FileUpload:
    """A temporary file that becomes the object: written, synced, renamed, and its folder synced."""

    def __init__(self, store: DirectoryStore, path: str) -> None:
        self._store = store
        self._path = path
        with _explained("write", path):
            self._handle, self._temporary = _locked_temporary(store.folder(TEMPORARY))
        self._file = ParallelFile(self._handle)

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        with _explained("write", self._path):
            self._file.write(buffers, offset)

    def commit(self, replace: bool = True) -> bool:
        folder = os.path.dirname(self._path)
        with _explained("write", self._path):
            os.fsync(self._handle)
            self._store.make_folder(folder)
            try:
                appeared = self._appear(replace)
            except FileNotFoundError:
                # Whoever deleted the last object in the folder took it along.
                self._store.make_folder(folder, anew=True)
                appeared = self._appear(replace)
            if not appeared:
                return False
            sync(folder)
        self._close()
        return True

    def _appear(self, replace: bool) -> bool:
        if replace:
            os.rename(self._temporary, self._path)
            return True
        try:
            os.link(self._temporary, self._path)
        except FileExistsError:
            return False
        os.unlink(self._temporary)
        return True

    def abandon(self) -> None:
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            self._close()

    def _close(self) -> None:
        handle, self._handle = self._handle, -1  # it is closed even where that fails, and the number may be another file's by then
        with contextlib.suppress(OSError):  # NFS tells what was not written once more; what counts was synced
            os.close(handle)


class DirectoryStore:
    """Objects as files below a directory: local, NFS or CephFS. Whoever may write there may delete: nothing is ever locked."""

    open_uploads: t.Optional[int] = None

    def __init__(self, root: str) -> None:
        self.location = root
        self.local_path: t.Optional[str] = root
        self._made: t.Set[str] = set()

    def _path(self, name: str) -> str:
        return os.path.join(self.location, *name.split("/"))

    def folder(self, name: str) -> str:
        """Path of a folder of the store, made if need be."""
        path = self._path(name)
        self.make_folder(path)
        return path

    def make_folder(self, path: str, anew: bool = False) -> None:
        """Have a folder, durably: a new one is once its parent is synced. Each is looked at once in a run unless ``anew``."""
        if path in self._made and not anew:
            return
        if not os.path.isdir(path):
            self.make_folder(os.path.dirname(path), anew)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            sync(os.path.dirname(path))
        self._made.add(path)

    def upload(self, name: str) -> Upload:
        return _FileUpload(self, self._path(name))

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        upload = self.upload(name)
        try:
            upload.write([data], 0)
            return upload.commit(replace)
        finally:
            upload.abandon()

    def get(self, name: str) -> bytes:
        path = self._path(name)
        with _explained("read", path), open(path, "rb") as file:
            return file.read()

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        path = self._path(name)
        with _explained("read", path):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(handle, length, offset)
            finally:
                os.close(handle)

    def size(self, name: str) -> int:
        path = self._path(name)
        with _explained("read", path):
            return os.stat(path).st_size

    def list(self, prefix: str) -> t.Iterator[str]:
        for folder, _folders, files in os.walk(self._path(prefix), onerror=self._listing_failed):
            relative = os.path.relpath(folder, self.location)
            for file in files:
                yield os.path.join(relative, file).replace(os.sep, "/")

    def entries(self, prefix: str) -> t.Iterator[Entry]:
        for name in self.list(prefix):
            path = self._path(name)
            with contextlib.suppress(ObjectMissing), _explained("list", path):  # gone since
                found = os.stat(path)
                yield Entry(name, found.st_size, found.st_mtime)

    def modified(self, name: str) -> float:
        path = self._path(name)
        with _explained("read", path):
            return os.stat(path).st_mtime

    def _listing_failed(self, error: OSError) -> None:
        # os.walk swallows errors unless told otherwise; a partial listing must never pass for a whole one.
        if not isinstance(error, FileNotFoundError):
            raise RepositoryError(f"Cannot list {error.filename}: {error.strerror}. {_advice(error)}") from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        with contextlib.suppress(ObjectMissing), _explained("delete", path):
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(path))  # only an empty folder goes

    def locked_until(self, name: str) -> t.Optional[float]:
        return None

    def protect(self, names: t.Iterable[str], like: str) -> None:
        pass

    def occupants(self) -> t.Set[str]:
        if not os.path.lexists(self.location):
            return set()
        if not os.path.isdir(self.location):
            raise RepositoryError(f"The repository {self.location} is not a directory.")
        with _explained("list", self.location):
            # What a creation that was cut short, or a fresh file system, leaves there.
            return set(os.listdir(self.location)) - {TEMPORARY, "lost+found"}

    def sweep(self) -> None:
        folder = self._path(TEMPORARY)
        names: t.List[str] = []
        with contextlib.suppress(OSError):
            names = os.listdir(folder)
        for name in names:
            if name.startswith(_temporary_prefix()):
                with contextlib.suppress(OSError):  # gone meanwhile, or locked: in use
                    _remove_unlocked(os.path.join(folder, name))


def _remove_unlocked(path: str) -> None:
    handle = os.open(path, os.O_RDWR)  # NFS locks only what is open for writing
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(handle)
