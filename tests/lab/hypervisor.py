# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hypervisor under test: a connection to the libvirt of this machine."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

import libvirt

from lab.closing import Closing
from lab.daemons import Daemons
from lab.process import wait_until
from lab.workspace import WORKSPACES, make_workspace

_RECONNECT_TIMEOUT = 20.0
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Services(Protocol):
    """The daemons behind a connection; see `Daemons`."""

    def acquire(self) -> None:
        """Take part in them; start them when nothing answers."""

    def release(self) -> None:
        """Leave. May be called twice."""

    @property
    def started_by_lab(self) -> bool:
        """Whether libvirtd may be restarted."""

    def restart_libvirtd(self) -> None:
        """Stop and start libvirtd; running domains go on."""


class Hypervisor(Closing):
    """`qemu:///system`, with libvirtd started when nothing answers, and a workspace.

    Use as a context manager, or call `close()`. Everything made in it is removed at the end,
    also when the process is ended by SIGINT, SIGTERM or SIGHUP.
    """

    def __init__(self, uri: str = "qemu:///system", workspaces: Path = WORKSPACES) -> None:
        self.uri = uri
        self.workspace = make_workspace(parent=workspaces)
        self._owner = os.getpid()
        self._residents: list[Closing] = []
        self._connection: libvirt.virConnect | None = None
        self._daemons = self._services()
        self._folders = 0
        # libvirt prints every error to stderr unless told otherwise.
        libvirt.registerErrorHandler(lambda context, error: None, None)
        atexit.register(self.close)
        _end_by_exception()
        try:
            self._daemons.acquire()
        except BaseException:
            self.close()
            raise

    # Hooks for hypervisors elsewhere.

    def _services(self) -> Services:
        return Daemons(self._answers, self.workspace / "daemons.log")

    def path(self, path: Path) -> Path:
        """Where a file of the hypervisor is seen by this process."""
        return path

    def process(self, pid: int) -> int:
        """The id by which this process knows a process of the hypervisor."""
        return pid

    # Use.

    @property
    def connection(self) -> libvirt.virConnect:
        """The open connection; another object after libvirtd was restarted by anybody."""
        if not self._answers():
            wait_until(self._answers, _RECONNECT_TIMEOUT, f"connection to {self.uri}")
        return self._connection

    @property
    def may_restart(self) -> bool:
        """Whether `restart_daemon` is allowed: a lab started the libvirtd of now."""
        return self._daemons.started_by_lab

    def restart_daemon(self) -> None:
        """Restart libvirtd and reconnect. LabError when no lab started it.

        Domain handles of the old connection are dead afterwards.
        """
        self._disconnect()
        self._daemons.restart_libvirtd()

    def folder(self, name: str | None = None) -> Path:
        """Make a folder in the workspace in which QEMU may create sockets, as in /var/tmp."""
        self._folders += 1
        path = self.workspace / (name or f"folder-{self._folders}")
        path.mkdir()
        path.chmod(0o1777)
        return path

    def adopt(self, resident: Closing) -> None:
        """Close `resident` before libvirt is let go, in case its owner does not."""
        self._residents.append(resident)

    def disown(self, resident: Closing) -> None:
        """Forget a resident which is closed."""
        if resident in self._residents:
            self._residents.remove(resident)

    def close(self) -> None:
        """Remove domains, daemons and workspace of this lab. May be called twice."""
        if os.getpid() != self._owner:
            return  # a forked child inherits atexit, but not the lab
        atexit.unregister(self.close)
        try:
            while self._residents:
                self._residents.pop().close()
        finally:
            self._disconnect()
            self._daemons.release()
            shutil.rmtree(self.workspace, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            if self._connection is None:
                self._connection = libvirt.open(self.uri)
            self._connection.getLibVersion()
        except libvirt.libvirtError:
            self._disconnect()
            return False
        return True

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Closing a broken connection is an error to libvirt, and of no interest.
            with suppress(libvirt.libvirtError):
                connection.close()


def _end_by_exception() -> None:
    """Turn ending signals into KeyboardInterrupt, so `with` blocks and fixtures unwind."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
