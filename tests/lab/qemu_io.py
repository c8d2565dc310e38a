# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guest writes without a guest: qemu-io commands through a domain's monitor.

QEMU prints what a qemu-io command says to its own standard output, which is the domain's log;
the monitor answers an empty text, also when the command failed. So the log is read: each
command is followed by one which cannot exist, and the complaint about it marks the end.
"""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lab.errors import LabError
from lab.process import wait_until

_LOG_TIMEOUT = 60.0


class QemuIo:
    """Runs qemu-io commands on block devices of one running QEMU process."""

    def __init__(self, monitor: Callable[[str], str], log: Path) -> None:
        """`monitor` runs a human monitor command; `log` is where QEMU's output goes."""
        self._monitor = monitor
        self._log = _LogFollower(log)
        self._session = uuid.uuid4().hex[:8]
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def run(self, device: str, command: str) -> str:
        """Run a qemu-io command on a device (a QOM path) and return what it printed.

        LabError when the device does not exist; whether the text is an error is for the caller.
        """
        with self._lock:
            marker = f"lab-{self._session}-{next(self._numbers)}"
            self._log.skip_to_end()
            self._send(device, command)
            self._send(device, marker)
            return self._log.read_until(f'command "{marker}" not found\n')

    def transfer(self, device: str, command: str, offset: int, length: int) -> None:
        """Run a command that reports its bytes; LabError unless all were done."""
        printed = self.run(device, f"{command} {offset} {length}")
        if f" {length}/{length} bytes at offset {offset}\n" not in printed:
            raise LabError(f"{command} {offset} {length} on {device}: {printed.strip()}")

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()

    def _send(self, device: str, command: str) -> None:
        answer = self._monitor(f'qemu-io -d {device} "{command}"').strip()
        if answer:
            raise LabError(f"qemu-io {command}: {answer}")


class _LogFollower:
    """Reads what is appended to a log, across its rotation by virtlogd."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def skip_to_end(self) -> None:
        """Forget what has been written so far."""
        self._opened().seek(0, os.SEEK_END)

    def read_until(self, end: str) -> str:
        """Wait for `end` and return the text before it."""
        text = bytearray()
        wanted = end.encode()

        def complete() -> bool:
            text.extend(self._read())
            return wanted in text

        wait_until(complete, _LOG_TIMEOUT, f"{end!r} in {self._path}", step=0.002)
        return text.partition(wanted)[0].decode(errors="replace")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self._path.open("rb", buffering=0)
        return self._file

    def _read(self) -> bytes:
        data = self._opened().read()
        if not data and self._rotated():
            self.close()
            data = self._opened().read()
        return data

    def _rotated(self) -> bool:
        try:
            current = self._path.stat()
        except FileNotFoundError:
            return False  # in the middle of a rotation
        return current.st_ino != os.fstat(self._opened().fileno()).st_ino
