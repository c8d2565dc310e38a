# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of a run: one line of a file for each event.

A line has the time in UTC, the level, the module with its process, the phase, the event, and the fields as key=value.
Several processes may write to one file, because each line is one write.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import os
import re
import stat
import time
import typing as t

from .control import Event, Progress, Value
from .errors import Refused
from .printable import printable
from .trusted_files import upwards

_LONGEST = 4096  # characters of a value; names and messages from outside may be of any length
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BARE = re.compile(r'[^\s"=\\]+')  # a text that needs no quotes
_PROGRESS_EVERY = 30.0  # seconds


def line(event: Event, moment: datetime.datetime, source: str) -> str:
    """An event as a line of the log, without its newline."""
    time_of_day = moment.astimezone(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = [f"{name}={_shown(value)}" for name, value in event.fields.items()]
    return " ".join([time_of_day, event.level.upper(), source, event.phase or "-", event.name, *fields])


def _shown(value: Value) -> str:
    if value is None:
        return "-"
    if not isinstance(value, str):
        return str(value).lower()
    text = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."
    if _BARE.fullmatch(text) and text.isprintable() and text != "-":
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def _check_folder(folder: str) -> None:
    """Raise Refused if another user could put a file in the place of the log.

    A group may have write access to the folder itself, as to /var/log on Ubuntu: what it puts there is refused when it
    is opened.
    """
    for path, status in upwards(folder):
        writers = stat.S_IWOTH if path == folder or status.st_gid in (0, os.getegid()) else stat.S_IWOTH | stat.S_IWGRP
        exchangeable = status.st_mode & writers and (path == folder or not status.st_mode & stat.S_ISVTX)
        if exchangeable or status.st_uid not in (0, os.geteuid()):
            raise Refused(
                f"another user can replace files in {path}. Use a directory that only root, or this user, can write to"
            )


def _check_file(handle: int) -> None:
    """Raise Refused unless the file is regular and only this user can write to it."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise Refused("it is not a regular file")
    if status.st_uid != os.geteuid():
        raise Refused(f"it belongs to user {status.st_uid}")
    if status.st_nlink != 1:
        raise Refused("it has a second name (hard link)")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused("other users can write to it. Set its mode to 0600")


def _opened(path: str) -> int:
    """Return a handle of the file, created with mode 0600 if missing. Raises OSError, Refused."""
    if not os.path.isabs(path):
        raise Refused("it is not an absolute path")
    folder, name = os.path.split(path)
    real = os.path.realpath(folder)
    _check_folder(real)
    handle = os.open(os.path.join(real, name), _FLAGS, 0o600)
    try:
        _check_file(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


class Log:
    """Appends events to a file. Once it is open, it never fails an operation."""

    def __init__(self, path: str, source: str, hidden: t.Callable[[str], str], failed: t.Callable[[str], None]) -> None:
        """Open the file at ``path``.

        ``source`` names the module in each line, ``hidden`` takes secrets out of a text, and ``failed`` is called once
        with a warning if the file cannot be written to. Raises Refused if it cannot be opened.
        """
        try:
            self._handle = _opened(path)
        except (OSError, ValueError, Refused) as error:
            why = (error.strerror or "unknown error") if isinstance(error, OSError) else str(error)
            raise Refused(f"Cannot write the log {printable(path)}: {why}. log_path names the file.") from error
        self._path, self._source = path, f"{source}[{os.getpid()}]"
        self._hidden, self._failed = hidden, failed
        self._whole = True  # whether the last line in the file is complete
        self._warned = False
        self._quiet_until = time.monotonic() + _PROGRESS_EVERY

    def event(self, event: Event) -> None:
        """Append an event."""
        fields = {key: self._hidden(each) if isinstance(each, str) else each for key, each in event.fields.items()}
        shown = dataclasses.replace(event, fields=fields)
        self._append(line(shown, datetime.datetime.now(datetime.timezone.utc), self._source))

    def progress(self, step: Progress) -> None:
        """Append the progress of an operation, at most every 30 seconds."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _PROGRESS_EVERY
            fields: dict[str, Value] = {"subject": step.subject, "done_bytes": step.done, "total_bytes": step.total}
            self.event(Event("progress", phase=step.phase, fields=fields))

    def _append(self, text: str) -> None:
        data = f"{'' if self._whole else chr(10)}{text}\n".encode()
        try:
            written = os.write(self._handle, data)
        except OSError as error:
            self._fail(error.strerror or "unknown error")
            return
        self._whole = written == len(data)
        if not self._whole:
            self._fail(os.strerror(errno.ENOSPC))

    def _fail(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            self._failed(
                f"The log {self._path} is incomplete: {why}. Free space there; the operation goes on without it."
            )
