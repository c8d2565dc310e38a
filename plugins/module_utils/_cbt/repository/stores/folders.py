# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders and files below a root, opened without following a symbolic link.

Anyone who can write to a shared directory can replace any folder or file with a link, and each host resolves the link
by itself. So each part of a path is opened relative to the handle of its parent, and all operations use such handles. A
handle is open for one request only: a folder may vanish and come back at any time. Folders are opened without read
permission (O_PATH), which costs an NFS client nothing. The root itself may be a link, because the user named it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import typing as t

from ...files import sync, sync_handle

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFREG: "a file",
}


class WrongKind(OSError):
    """Something other than a folder, or than a file, is in its place."""


def kind_of(mode: int) -> str:
    """Return the kind of file that a mode describes, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "something unknown")


def wrong_kind(path: str, mode: int, wanted: str = "file") -> WrongKind:
    """Return the error for a path that is not a file, or not of the kind ``wanted``."""
    return WrongKind(f"{path} is {kind_of(mode)} and not a {wanted}")


@contextlib.contextmanager
def opened(root: str, folder: str, make: bool = False) -> t.Iterator[int]:
    """Open a folder below the root (``""`` is the root itself).

    With ``make``, create missing folders. Raises FileNotFoundError if a folder does not exist, WrongKind if a part is
    not a folder, or OSError.
    """
    if make:
        _have_root(root)
    handle = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        path = root
        for part in folder.split("/") if folder else ():
            path = f"{path}/{part}"
            parent, handle = handle, _inner(handle, part, path, make)
            os.close(parent)
        yield handle
    finally:
        os.close(handle)


def _inner(parent: int, name: str, path: str, make: bool) -> int:
    """Open a folder inside another one. The caller keeps the handle of the other one."""
    while True:
        try:
            return os.open(name, _FOLDER, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise wrong_kind(path, os.lstat(name, dir_fd=parent).st_mode, "folder") from error
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            with contextlib.suppress(OSError):  # another process removed the empty folder, or modes cannot be changed
                _let_owner_in(name, parent)
        sync_folder(parent)


def _let_owner_in(name: str, parent: int) -> None:
    """Set the mode of a new folder, of which the umask may have cleared bits."""
    handle = os.open(name, _FOLDER, dir_fd=parent)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o777 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # fchmod does not work on a handle of O_PATH
    finally:
        os.close(handle)


def _have_root(root: str) -> None:
    """Create the root and its missing parents, durably."""
    if not os.path.isdir(root):
        parent = os.path.dirname(root)
        if parent != root:
            _have_root(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(root, 0o700)
        sync(parent)


def sync_folder(folder: int) -> None:
    """Sync the names in a folder to the disk. Raises OSError."""
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        sync_handle(handle)
    finally:
        os.close(handle)


def status(folder: int, name: str, path: str) -> os.stat_result:
    """Return the status of a file in a folder. Raises WrongKind if it is not a file, or OSError."""
    found = os.lstat(name, dir_fd=folder)
    if not stat.S_ISREG(found.st_mode):
        raise wrong_kind(path, found.st_mode)
    return found


@contextlib.contextmanager
def reading(folder: int, name: str, path: str) -> t.Iterator[tuple[int, os.stat_result]]:
    """Open a file in a folder for reading. Yields its handle and its status.

    Raises as ``status`` does. The kind is checked before opening, because opening a device may have an effect. It is
    checked again afterwards, because the file may have been replaced.
    """
    status(folder, name, path)
    handle = os.open(name, _READ, dir_fd=folder)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise wrong_kind(path, found.st_mode)
        yield handle, found
    finally:
        os.close(handle)


class Seen(t.NamedTuple):
    """An entry of a folder. It is a folder, a file or neither; ``status`` is set on request, for files only."""

    name: str
    folder: bool
    file: bool
    status: os.stat_result | None = None

    @property
    def kind(self) -> str:
        """The kind of the entry, in words."""
        return "a folder" if self.folder else "a file" if self.file else "neither a folder nor a file"


def contents(folder: int, with_status: bool = False) -> t.Iterator[Seen]:
    """Yield the entries of a folder, whose handle must stay open. Links are not followed. Raises OSError."""
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        with os.scandir(handle) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # deleted since
                    is_folder, is_file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
                    known = entry.stat(follow_symlinks=False) if with_status and is_file else None
                    yield Seen(entry.name, is_folder, is_file, known)
    finally:
        os.close(handle)
