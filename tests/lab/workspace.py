# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders for what a lab keeps on disk. Those of a process that was killed are removed by the next one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WORKSPACES = Path("/var/tmp")
_PREFIX = "kvm-cbt-lab-"
_LOCK = "in-use"

_held: list[int] = []


def make_workspace(kind: str = "", parent: Path = WORKSPACES) -> Path:
    """Make a folder that everybody may read, and that counts as in use for as long as this process lives."""
    with _alone(parent):
        for folder in parent.glob(f"{_PREFIX}*/{_LOCK}"):
            _remove_unused(folder.parent)
        made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}", dir=parent))
        made.chmod(0o755)
        handle = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        _held.append(handle)
    return made


def _remove_unused(folder: Path) -> None:
    with suppress(OSError):  # in use, or another process removes it
        handle = os.open(folder / _LOCK, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
