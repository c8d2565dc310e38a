# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts and stops the process of a server.

The process gets what it must know over a socket in the folder of the export. So no secret is in its arguments, its
environment or a file. It answers over the same socket when it serves, or with the reason why it does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import typing as t

from ... import archive, programs
from ...control import Control
from ...errors import CbtError
from ...printable import printable
from ...trusted_files import opened
from . import exports

_START_WITHIN = 60.0  # seconds
_STOP_WITHIN = 30.0
_WAKE = 0.2
_MOST_SAID = 4096  # characters
_SYSTEMD = "/run/systemd/system"  # is there if systemd runs
_SERVER = "operations.export.server"

Ended = t.Callable[[], t.Optional[int]]


def start(name: str, settings: t.Mapping[str, t.Any], control: Control) -> int:
    """Start the server of an export. Returns its process id once it serves. Raises CbtError with its reason."""
    folder = exports.folder_of(name)
    code, start_socket = os.path.join(folder, exports.ARCHIVE), os.path.join(folder, exports.START)
    with open(code, "wb") as file:
        archive.write(file, _SERVER)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(start_socket)
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as handle, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{handle}/{exports.START}")  # the folder's own path may be too long
        listening.listen(1)
        try:
            ended = _run(name, [sys.executable, code, folder])
            answer = _converse(listening, ended, settings, control)
        except BaseException:
            stop(name)
            raise
        finally:
            os.unlink(start_socket)
    if "error" in answer:
        stop(name)
        raise CbtError(f"Cannot serve the export {name}: {answer['error'] or _last_words(name)}")
    return int(answer["pid"])


def unit(name: str) -> str:
    """Return the systemd unit of a server."""
    return f"kvm-cbt-export-{name}.service"


def _has_systemd() -> bool:
    return os.geteuid() == 0 and os.path.isdir(_SYSTEMD)


def _run(name: str, command: t.Sequence[str]) -> Ended:
    """Start the process where it outlives the task: in a unit of systemd, if systemd runs here."""
    if not _has_systemd():
        with open(os.path.join(exports.folder_of(name), exports.LOG), "wb") as log:
            return programs.detached(command, log)
    options = ["--quiet", "--collect", f"--unit={unit(name)}", f"--description=kvm.cbt export {name}"]
    programs.run(["systemd-run", *options, "--property=OOMPolicy=continue", "--", *command])
    return lambda: None


def _converse(
    listening: socket.socket, ended: Ended, settings: t.Mapping[str, t.Any], control: Control
) -> dict[str, t.Any]:
    """Send the settings, and return the answer, an empty error if there is none. Raises Interrupted."""
    deadline = time.monotonic() + _START_WITHIN

    def patiently(source: socket.socket) -> bool:
        """Wait until there is something to receive. Return False if that takes too long, or the process ended."""
        while not select.select([source], [], [], _WAKE)[0]:
            control.check()
            if ended() is not None or time.monotonic() > deadline:
                return False
        return True

    if not patiently(listening):
        return {"error": ""}
    with listening.accept()[0] as connection:
        try:
            connection.sendall(json.dumps(settings).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while patiently(connection) and (part := connection.recv(1 << 16)):
                answer += part
            return t.cast("dict[str, t.Any]", json.loads(answer))
        except (OSError, ValueError):
            return {"error": ""}


def _last_words(name: str) -> str:
    """Return why a server gave no reason, as far as it is known."""
    if _has_systemd():
        return f"it gave no reason. See journalctl -u {unit(name)}."
    with open(os.path.join(exports.folder_of(name), exports.LOG), encoding="utf-8", errors="replace") as log:
        said = log.read()[-_MOST_SAID:].strip().splitlines()
    return f"it gave no reason. The last line of its log is: {printable(said[-1]) if said else 'none'}"


def stop(name: str) -> None:
    """End the server of an export, if it runs. Raises CbtError if it does not end."""
    pid = exports.running(name)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                os.kill(pid, number)
                if select.select([process], [], [], _STOP_WITHIN)[0]:
                    break
        finally:
            os.close(process)
    deadline = time.monotonic() + _STOP_WITHIN  # the process that answers clients ends right after
    while exports.running(name) is not None:
        if time.monotonic() > deadline:
            raise CbtError(f"The server of the export {name} (process {pid}) does not end. End it, and run this again.")
        time.sleep(_WAKE / 10)
