# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder for this user's locks. No other user can write or hold a lock in it."""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

from .errors import Refused

ROOTS_FOLDER = "/run/kvm-cbt"
_NAME = "kvm-cbt"


def _own(path: str) -> bool:
    """Whether this is a folder, not a link, that only this user can write to."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _path() -> str:
    """Return the path of the folder.

    Root's folder is below /run. A user's folder is in the runtime directory, even if XDG_RUNTIME_DIR is not set, or
    else below the home.
    """
    if os.geteuid() == 0:
        return ROOTS_FOLDER
    for parent in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"):
        if os.path.isabs(parent) and _own(parent):
            return os.path.join(parent, _NAME)
    state = os.environ.get("XDG_STATE_HOME", "")
    return os.path.join(state if os.path.isabs(state) else os.path.expanduser("~/.local/state"), _NAME)


@contextlib.contextmanager
def own_folder() -> t.Iterator[tuple[str, int]]:
    """Yield the path and a handle of the folder, which is created if missing.

    Raises Refused if it cannot be created, is a link, or belongs to another user.
    """
    path = _path()
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(
            f"Cannot use {path} for locks: {error.strerror}. It must be a directory of user {os.geteuid()}, not a link."
        ) from error
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise Refused(f"Cannot use {path} for locks: it belongs to user {os.fstat(handle).st_uid}. Delete it.")
        os.fchmod(handle, 0o700)
        yield path, handle
    finally:
        os.close(handle)
