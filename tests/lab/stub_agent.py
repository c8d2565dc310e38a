# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stub of the guest agent, which answers as a test requires.

libvirt and QEMU both connect to its socket. libvirt does so when the guest opens the port of the channel, so the domain
needs a guest with an agent. That agent receives nothing.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.closing import Closing

FREEZE = "guest-fsfreeze-freeze"
THAW = "guest-fsfreeze-thaw"
STATUS = "guest-fsfreeze-status"
_SYNC = ("guest-sync", "guest-sync-delimited")
FILE_SYSTEMS = 2


class Refusal(Exception):
    """An error that the agent answers with."""

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.kind = kind


class Silence(Exception):
    """Raised by a behaviour: the command has no answer."""


class Agent:
    """The state of an agent, and how it carries out commands.

    ``behaviour`` replaces commands; the functions there return the answer, or raise Refusal or Silence. ``commands`` are
    those carried out.
    """

    def __init__(self) -> None:
        self.frozen = False
        self.behaviour: dict[str, Callable[[], Any]] = {}
        self.commands: list[str] = []

    def reset(self) -> None:
        """Behave well again, thawed, with nothing recorded."""
        self.frozen = False
        self.behaviour.clear()
        self.commands.clear()

    def freeze(self) -> int:
        """Freeze, as the real agent does: an error if it is frozen already."""
        if self.frozen:
            raise Refusal(f"The command {FREEZE} has been disabled for this instance", "CommandNotFound")
        self.frozen = True
        return FILE_SYSTEMS

    def thaw(self) -> int:
        """Thaw, and count what was frozen."""
        count = FILE_SYSTEMS if self.frozen else 0
        self.frozen = False
        return count

    def carry_out(self, name: str, arguments: dict[str, Any]) -> Any:
        """Return the answer. Raises Refusal or Silence."""
        if name in _SYNC:
            return arguments["id"]
        self.commands.append(name)
        usual: dict[str, Callable[[], Any]] = {
            FREEZE: self.freeze,
            f"{FREEZE}-list": self.freeze,
            THAW: self.thaw,
            STATUS: lambda: "frozen" if self.frozen else "thawed",
            "guest-ping": dict,
        }
        play = self.behaviour.get(name) or usual.get(name)
        if play is None:
            raise Refusal(f"The command {name} has not been found", "CommandNotFound")
        return play()


class StubAgent(Agent, Closing):
    """Serves a channel with ``mode='connect'``.

    Like the real agent, it carries out one command after the other, so one that takes long holds up the next.
    ``received`` counts all requests, also those that wait.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.received = 0
        self._news = threading.Condition()
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o777)
        self._listener.listen()
        self._serve(self._accept)

    def reset(self) -> None:
        """Behave well again, thawed, with nothing recorded."""
        super().reset()
        self.received = 0

    def wait_received(self, count: int, timeout: float = 60) -> bool:
        """Wait until so many requests have come since the last reset."""
        with self._news:
            return self._news.wait_for(lambda: self.received >= count, timeout)

    def hang_up(self) -> None:
        """Close all connections, as if the agent had ended."""
        for each in self._connections:
            each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all connections. May be called twice."""
        for each in (self._listener, *self._connections):
            each.close()
        self.path.unlink(missing_ok=True)

    def _serve(self, target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            waiting: queue.Queue[dict[str, Any]] = queue.Queue()
            self._serve(self._read, connection, waiting)
            self._serve(self._work, connection, waiting)

    def _read(self, connection: socket.socket, waiting: queue.Queue[dict[str, Any]]) -> None:
        try:
            for line in connection.makefile("rb"):
                waiting.put(json.loads(line.lstrip(b"\xff")))
                with self._news:
                    self.received += 1
                    self._news.notify_all()
        except (OSError, ValueError):
            return  # it was closed

    def _work(self, connection: socket.socket, waiting: queue.Queue[dict[str, Any]]) -> None:
        while True:
            request = waiting.get()
            name = request["execute"]
            try:
                answer: dict[str, Any] = {"return": self.carry_out(name, request.get("arguments", {}))}
            except Silence:
                continue
            except Refusal as error:
                answer = {"error": {"class": error.kind, "desc": str(error)}}
            start = b"\xff" if name == "guest-sync-delimited" else b""
            try:
                connection.sendall(start + json.dumps(answer).encode() + b"\n")
            except OSError:
                return
