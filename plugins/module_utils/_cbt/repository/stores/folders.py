# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders and files below a root, opened part by part: no symbolic link below it is ever followed.

Anyone who can write to a shared directory can put a link in the place of any folder or file, and each host resolves it by itself. So a
folder is opened by its handle's own parent, and everything is done within such handles. They are open for one request only: a
folder may vanish and come back at any time. They are opened without permission to read (O_PATH), which costs an NFS client nothing.
The root itself may be a link, for the user named it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import typing as t

from ...files import sync

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFREG: "a file",
}


class WrongKind(Exception):
    """Something stands in the place of a folder, or of a file, that is none."""


def kind_of(mode: int) -> str:
    """What something with this mode is, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "something unknown")


def wrong_kind(path: str, mode: int, wanted: str = "file") -> WrongKind:
    """The error where something else stands in the place of a file, or of what is ``wanted``."""
    return WrongKind(f"{path} is {kind_of(mode)} and not a {wanted}")


@contextlib.contextmanager
def opened(root: str, folder: str, make: bool = False) -> t.Iterator[int]:
    """A handle of a folder below the root, ``""`` being the root itself; with ``make``, what is missing of it is made.

    Raises WrongKind if a part of it is no folder, FileNotFoundError if one does not exist, or OSError.
    """
    if make:
        _have_root(root)
    handle = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
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
    """A handle of a folder within another one. That of the other one stays open, unless this fails."""
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
            with contextlib.suppress(FileNotFoundError):  # another process that found it empty removed it
                _let_owner_in(name, parent)
        sync_folder(parent)


def _let_owner_in(name: str, parent: int) -> None:
    """Give a folder that was just made its mode, which a umask may have taken bits of."""
    handle = os.open(name, _FOLDER, dir_fd=parent)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o777 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # a handle of O_PATH takes no fchmod
    finally:
        os.close(handle)


def _have_root(root: str) -> None:
    """Make the root and what is missing above it, durably."""
    if not os.path.isdir(root):
        parent = os.path.dirname(root)
        if parent != root:
            _have_root(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(root, 0o700)
        sync(parent)


def sync_folder(folder: int) -> None:
    """Have the names in a folder on the disk for certain. Raises OSError."""
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def status(folder: int, name: str, path: str) -> os.stat_result:
    """What is known of a file in a folder. Raises WrongKind if it is none, or OSError."""
    found = os.lstat(name, dir_fd=folder)
    if not stat.S_ISREG(found.st_mode):
        raise wrong_kind(path, found.st_mode)
    return found


@contextlib.contextmanager
def reading(folder: int, name: str, path: str) -> t.Iterator[tuple[int, os.stat_result]]:
    """A handle of a file in a folder to read from, and what is known of it. Raises as ``status`` does.

    It is looked at before it is opened, since opening a device may do something, and afterwards, since it may be another one by then.
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
    """Something in a folder: its name, and whether it is a folder or a file; neither if it is anything else. ``status`` if that was asked for."""

    name: str
    folder: bool
    file: bool
    status: os.stat_result | None = None

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "a folder" if self.folder else "a file" if self.file else "neither a folder nor a file"


def contents(folder: int, with_status: bool = False) -> t.Iterator[Seen]:
    """What is in a folder, whose handle has to stay open meanwhile. Links are not followed. Raises OSError."""
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        with os.scandir(handle) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # gone since
                    is_folder, is_file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
                    known = entry.stat(follow_symlinks=False) if with_status and is_file else None
                    yield Seen(entry.name, is_folder, is_file, known)
    finally:
        os.close(handle)
