# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locking and renaming files, and writing them in large pieces."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
import threading
import time
import typing as t

from .trusted_files import opened

Buffer = t.Union[bytes, bytearray, memoryview]

_LIBC = ctypes.CDLL(None, use_errno=True)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin to write without waiting; a hint, so failures do not matter
_WRITE_AND_WAIT = 7  # wait for writes in progress, write the rest, and wait for it
_BEHIND = 32 << 20  # bytes after which written data leaves the page cache
_VECTORS = 512  # buffers passed to the kernel in one call; its limit is 1024
_FLUSH_FROM = 1 << 16  # bytes; smaller writes are not worth a call
_ANSWERED_WITHIN = 30.0  # seconds; the holder of a lock writes a small file
_TRUSTED_FOR = 60.0  # seconds for which a file system that answered a request for a lock is expected to answer others
_answered: dict[int, float] = {}  # the time of the last answer, by the device number of the file system
_AT_CWD = -100
_RENAME_NOREPLACE = 1
_UNSUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


def sync(path: str) -> None:
    """Flush a file's data, or the names in a folder, to the disk. Raises OSError."""
    with opened(path, os.O_RDONLY) as handle:
        sync_handle(handle)


def sync_handle(handle: int) -> None:
    """Flush the data of an open file, or the names in an open folder, to the disk. Raises OSError."""
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems, such as SMB, cannot sync a folder.
        if error.errno not in _CANNOT_SYNC or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise


class NoLockGranted(OSError):
    """A file system did not answer a request for a lock."""


def lock(handle: int, wait: bool = True) -> bool:
    """Lock a file (flock) while it is open. Return False if another process holds the lock, or if there are no locks.

    Raises NoLockGranted if there is no answer: the kernel asks the lock manager of a network file system. If that does
    not respond, the kernel waits forever and ignores signals. Therefore another thread makes the first request to a
    file system in each minute. Not all of them, because threads need memory.
    """
    device = os.fstat(handle).st_dev
    if time.monotonic() - _answered.get(device, -_TRUSTED_FOR) < _TRUSTED_FOR:
        return _flock(handle, wait)
    granted: list[bool] = []
    thread = threading.Thread(target=lambda: granted.append(_flock(handle, wait)), daemon=True)
    thread.start()
    thread.join(_ANSWERED_WITHIN)
    if thread.is_alive():
        raise NoLockGranted(
            errno.ENOLCK, f"no answer to a request for a file lock within {_ANSWERED_WITHIN:.0f} seconds"
        )
    _answered[device] = time.monotonic()
    return granted == [True]


def _flock(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def delete(path: str) -> None:
    """Delete a file, if it exists. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def rename_new(name: str, new: str, source: int = _AT_CWD, target: int = _AT_CWD) -> bool:
    """Rename a file, from one open folder to another. Return False if the new name exists. Raises OSError.

    If the file system supports neither links nor a rename that keeps what exists, a name that another process creates
    at the same time is replaced.
    """
    try:
        os.link(name, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        # Linux refuses to link a file with 0 links, which some file systems report for every file.
        if error.errno not in (*_UNSUPPORTED, errno.ENOENT):
            raise
    else:
        os.unlink(name, dir_fd=source)
        return True
    number = _rename_exclusively(name, source, new, target)
    if number in _UNSUPPORTED and not exists(new, target):
        os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
        return True
    if number and number not in (errno.EEXIST, *_UNSUPPORTED):
        raise OSError(number, os.strerror(number))
    return not number


def can_spare_existing(folder: int, name: str, new: str) -> bool:
    """Whether ``rename_new`` never replaces a file. Tries it on a file in a folder, and a name that does not exist."""
    try:
        os.link(name, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError:
        return not _rename_exclusively(name, folder, new, folder)
    return True


def _rename_exclusively(name: str, source: int, new: str, target: int) -> int:
    """Rename a file if the new name does not exist. Return 0, or the number of the error."""
    rename = getattr(_LIBC, "renameat2", None)  # older versions of musl do not have it
    if rename is None:
        return errno.ENOSYS
    return ctypes.get_errno() if rename(source, os.fsencode(name), target, os.fsencode(new), _RENAME_NOREPLACE) else 0


def exists(name: str, folder: int) -> bool:
    """Whether a folder has an entry of this name. Raises OSError."""
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


class ParallelFile:
    """A file written in pieces from several threads.

    The kernel lets one thread at a time write to a file, and the others spin. Here they wait for a lock, which leaves
    the processor to threads that compute.
    """

    def __init__(self, handle: int) -> None:
        """``handle`` is the handle of an open file. The caller closes it."""
        self._handle = handle
        self._lock = threading.Lock()
        self._written = 0  # bytes since the cache was last emptied, and their range
        self._lowest, self._highest = sys.maxsize, 0

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        """Write buffers one after another at ``offset``. Raises OSError."""
        with self._lock:
            written = _write_all(self._handle, buffers, offset)
            self._written += written
            self._lowest, self._highest = min(self._lowest, offset), max(self._highest, offset + written)
            behind = (self._lowest, self._highest) if self._written >= _BEHIND else None
            if behind is not None:
                self._written, self._lowest, self._highest = 0, sys.maxsize, 0
        if written >= _FLUSH_FROM:
            # The kernel begins to write to the disk now, so that an fsync at the end has little left to wait for.
            self._sync(offset, offset + written, _WRITE)
        if behind is not None:
            # A hypervisor's page cache is for its guests: written data makes room for the next data.
            if self._sync(*behind, _WRITE_AND_WAIT):
                number = ctypes.get_errno()  # the kernel reports an error once: a later fsync would succeed
                raise OSError(number, os.strerror(number))
            os.posix_fadvise(self._handle, behind[0], behind[1] - behind[0], os.POSIX_FADV_DONTNEED)

    def _sync(self, start: int, end: int, flags: int) -> int:
        return t.cast(
            int, _LIBC.sync_file_range(self._handle, ctypes.c_int64(start), ctypes.c_int64(end - start), flags)
        )


def _write_all(handle: int, buffers: t.Sequence[Buffer], offset: int) -> int:
    left = list(buffers)
    start = offset
    while left:
        written = os.pwritev(handle, left[:_VECTORS], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = memoryview(left[0])[written:]
    return offset - start
