# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a passphrase from a file or from the output of a program. No error shows any of it."""

from __future__ import annotations

import os
import shlex
import stat

from ...errors import Refused
from ...programs import output
from ...trusted_files import open_file

_LONGEST = 65536  # bytes
_OTHERS = stat.S_IRWXO | stat.S_IWGRP
_TIMEOUT = 60  # seconds for a program, which cannot ask anyone


def from_file(path: str) -> str:
    """Return the content of a file that only root or this user can write, without one trailing newline."""
    try:
        if not os.path.isabs(path):
            raise Refused("it is not an absolute path")
        with open_file(path) as file:
            _check(os.fstat(file.fileno()))
            return _text(file.read(_LONGEST + 1))
    except (OSError, ValueError, Refused) as error:
        why = (error.strerror or "unknown error") if isinstance(error, OSError) else str(error)
        raise Refused(f"Cannot read the passphrase from the file {path}: {why}.") from None


def from_command(command: str) -> str:
    """Return the output of a program, without one trailing newline. The command is split into words as by a shell."""
    try:
        words = shlex.split(command)
        if not words:
            raise Refused("it is empty")
        return _text(output(words, _TIMEOUT))
    except (ValueError, Refused) as error:
        raise Refused(f"Cannot read the passphrase from passphrase_command: {error}.") from None


def _check(status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise Refused(f"it belongs to user {status.st_uid}. It must belong to root or to the user that runs the task")
    if status.st_mode & _OTHERS:
        raise Refused("other users can access it, or its group can write to it. Set its mode to 0600")


def _text(read: bytes) -> str:
    if len(read) > _LONGEST:
        raise Refused(f"a passphrase has at most {_LONGEST} bytes")
    try:
        text = read.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise Refused("a passphrase is UTF-8 text") from None
    if not text:
        raise Refused("the passphrase is empty")
    return text
