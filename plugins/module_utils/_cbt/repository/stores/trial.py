# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests the file system of a directory before a repository is created there.

File systems of shares and of cloud storage have odd rules, which otherwise appear in the middle of a backup, or when
objects are missing. The operations of a store run in a folder of their own in ``tmp``, which is removed afterwards.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import time
import typing as t

from ...errors import Refused, RepositoryError
from ...files import can_spare_existing, lock
from ...trusted_files import opened
from ..format import names
from .base import LATEST, Store

_ASTRAY = 3 * 3600.0  # seconds by which the clock may differ from this host's without a warning
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_LEASE = names.lease("0" * 16)
_DOMAIN = "00000000-0000-0000-0000-000000000000"
_LONG, _SHORT = (names.point_file(_DOMAIN, "20000101T000000Z-00000000", file) for file in ("A" + "b" * 127, "b"))


def _temporary() -> str:
    return names.temporary(socket.gethostname(), secrets.token_hex(8))


def locks_exclude(folder: int) -> bool:
    """Whether a process cannot lock a file in a folder that another one has locked. Raises OSError."""
    name = _temporary()
    try:
        with opened(name, _NEW, folder) as first, opened(name, os.O_RDWR, folder) as second:
            return lock(first) and not lock(second, wait=False)
    finally:
        _remove(name, folder)


def try_out(temporary: int, location: str, store_in: t.Callable[[str], Store]) -> list[str]:
    """Try out the file system of the open folder ``temporary`` of a repository. Returns warnings.

    ``location`` is the repository's. Raises Refused if a repository cannot be kept there, or OSError.
    """
    name = _temporary()
    os.mkdir(name, 0o700, dir_fd=temporary)
    try:
        with opened(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, temporary) as folder:
            root = f"/proc/self/fd/{folder}"  # a link in the place of a folder above is not followed
            try:
                fault = next((what for holds, what in _rules(store_in(root)) if not holds), None)
            except RepositoryError as error:
                raise type(error)(str(error).replace(root, location)) from error
            if fault is not None:
                raise Refused(
                    f"Cannot keep a repository in {location}: its file system {fault}."
                    " Mount it with other options, or use another location; see docs/directories.md."
                )
            return [f"{location}: {each}" for each in _weaknesses(folder)]
    finally:
        _remove(name, temporary)


def _remove(name: str, folder: int) -> None:
    """Remove a file, or a folder and its content. Follows no link, and relies on no inode number."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)
        return
    with contextlib.suppress(OSError):
        with opened(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, folder) as inside:
            for each in os.listdir(inside):
                _remove(each, inside)
        os.rmdir(name, dir_fd=folder)


def _rules(store: Store) -> t.Iterator[tuple[bool, str]]:
    """Yield whether the file system keeps a rule, and what it does otherwise."""
    upload = store.upload(_LEASE)
    try:
        upload.write([b"world"], 6)
        upload.write([b"hello "], 0)
        upload.commit()
    finally:
        upload.abandon()
    yield store.get(_LEASE) == b"hello world", "returns other bytes than were written"
    yield 0 < store.modified(_LEASE) < LATEST, "does not report when a file was modified"
    store.put(_LEASE, b"new")
    yield store.get(_LEASE) == b"new", "does not replace files"
    yield store.swap(_LEASE, b"new", b"newer"), "reports changing inode numbers of a file"
    for name in (_LONG, _SHORT):
        store.put(name, b"", replace=False)
    found = sorted(store.list(names.POINTS))
    yield found == [_LONG, _SHORT], "lists other names than files were given, such as in another letter case"
    store.delete(_SHORT)
    yield list(store.list(names.POINTS)) == [_LONG], "lists files that were deleted"


def _weaknesses(folder: int) -> t.Iterator[str]:
    """Yield warnings about what a repository can do without."""
    with opened("first", _NEW, folder) as handle:
        with contextlib.suppress(OSError):
            os.fchmod(handle, 0o600)
        found = os.fstat(handle)
    if stat.S_IMODE(found.st_mode) & 0o077:
        yield (
            f"new files have mode {stat.S_IMODE(found.st_mode):04o}, so other users can access the repository. Mount"
            " the file system with umask=077, or with file_mode=0600,dir_mode=0700 for SMB."
        )
    ahead = found.st_mtime - time.time()
    if abs(ahead) > _ASTRAY:
        yield f"the clock of the file system differs from that of this host by {ahead / 3600:+.1f} hours. Adjust one."
    if not locks_exclude(folder):
        yield (
            "the file system has no locks between processes, so files that killed runs leave in tmp are not removed."
            " Do not change key slots in several runs at once. Mount it with locks if possible."
        )
    if not can_spare_existing(folder, "first", "second"):
        yield (
            "the file system cannot create a file only if it does not exist. Let one host create the repository before"
            " others use it."
        )
