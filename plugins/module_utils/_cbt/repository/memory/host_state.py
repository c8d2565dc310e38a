# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in which a host remembers repositories.

A lock protects them from other runs, their owner and mode from other users.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import typing as t

from ...files import lock

_LARGEST = 1 << 24  # bytes
_LOCK = "lock"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def state_folder() -> str:
    """Return the folder of this user's state. Raises OSError if the user has no home."""
    chosen = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(chosen):  # counts as unset, by the XDG Base Directory Specification
        chosen = "/var/lib" if os.geteuid() == 0 else os.path.expanduser("~/.local/state")
    if not os.path.isabs(chosen):
        raise OSError("the user has no home directory")
    return os.path.join(chosen, "kvm-cbt", "repositories")


def shown_folder() -> str:
    """Return the folder as messages name it."""
    try:
        return state_folder()
    except OSError:
        return "~/.local/state"


def read(name: str) -> bytes | None:
    """Return a file's bytes; None if it is missing.

    Raises OSError unless the file and its folder belong to this user and only this user can write to them.
    """
    with contextlib.suppress(FileNotFoundError), _opened(state_folder()) as folder:
        return _read(folder, name)
    return None


def update(name: str, change: t.Callable[[bytes | None], bytes | None]) -> None:
    """Replace a file's bytes with the result of ``change``; None deletes the file.

    A lock makes it safe beside other runs. Raises OSError.
    """
    path = state_folder()
    os.makedirs(os.path.dirname(os.path.dirname(path)), 0o700, exist_ok=True)
    for each in (os.path.dirname(path), path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each, 0o700)
    with _opened(path) as folder, _locked(folder):
        after = change(_read(folder, name))
        if after is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
        else:
            _write(folder, name, after)


@contextlib.contextmanager
def _opened(path: str) -> t.Iterator[int]:
    """Yield a handle of a folder. Checks its parent, too: a user who can write there could exchange the folder."""
    parent = _checked(os.open(os.path.dirname(path), _FOLDER))
    try:
        handle = _checked(os.open(os.path.basename(path), _FOLDER, dir_fd=parent))
    finally:
        os.close(parent)
    try:
        yield handle
    finally:
        os.close(handle)


def _checked(handle: int) -> int:
    """Return the handle if only this user can write to its file.

    Closes it and raises OSError otherwise.
    """
    found = os.fstat(handle)
    if found.st_uid == os.geteuid() and not found.st_mode & 0o022:
        return handle
    os.close(handle)
    raise PermissionError("other users can write there")


@contextlib.contextmanager
def _locked(folder: int) -> t.Iterator[None]:
    handle = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        lock(handle)  # held only while a small file is written
        yield
    finally:
        os.close(handle)


def _read(folder: int, name: str) -> bytes | None:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(_checked(handle), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{name} is not a regular file")
        return file.read(_LARGEST)


def _write(folder: int, name: str, data: bytes) -> None:
    temporary = f".{secrets.token_hex(8)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
