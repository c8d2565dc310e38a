# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""virtlogd and libvirtd for machines on which nobody started them.

Several lab users may run at once (two test runs, a demo). They share one pair of daemons:
the first one starts it, the last one out stops it. What was started is recorded in
STATE_FOLDER, so daemons left by a killed test run are stopped by the next one.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError
from lab.kvm_device import KvmDevice
from lab.process import alive, end_process, process_name, wait_until

STATE_FOLDER = Path("/run/kvm-cbt-lab")
VIRTLOGD_SOCKET = "/run/libvirt/virtlogd-sock"
START_TIMEOUT = 60.0

_children: dict[int, subprocess.Popen[bytes]] = {}


class Daemons:
    """The share of one lab user in the daemons of this machine."""

    def __init__(self, answers: Callable[[], bool], log: Path) -> None:
        """`answers` tells whether libvirtd serves requests; children write to `log`."""
        self._answers = answers
        self._log = log
        self._users: int | None = None
        self._kvm_device = KvmDevice()

    def acquire(self) -> None:
        """Take part in the daemons; start them when nothing answers."""
        with _mutex():
            self._users = os.open(STATE_FOLDER / "users", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._users, fcntl.LOCK_SH)
            self._kvm_device.open_to_qemu()
            if not self._answers():
                if not _listens(VIRTLOGD_SOCKET):
                    self._start("virtlogd", lambda: _listens(VIRTLOGD_SOCKET))
                self._start("libvirtd", self._answers)

    def release(self) -> None:
        """Leave; the last user stops what a lab started. May be called twice."""
        self._kvm_device.release()
        if self._users is None:
            return
        with _mutex():
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            else:
                _stop("libvirtd")
                _stop("virtlogd")
            finally:
                os.close(self._users)
                self._users = None

    @property
    def started_by_lab(self) -> bool:
        """Whether the libvirtd of now may be restarted and stopped by a lab."""
        return _recorded("libvirtd") is not None

    def restart_libvirtd(self) -> None:
        """Stop and start libvirtd; running domains go on. LabError when it is not a lab's."""
        with _mutex():
            if not self.started_by_lab:
                raise LabError("libvirtd was not started by a lab, so it is left alone")
            _stop("libvirtd")
            self._start("libvirtd", self._answers)

    def _start(self, name: str, ready: Callable[[], bool]) -> None:
        with self._log.open("ab") as log:
            # An own session: Ctrl-C reaches the lab alone, which then cleans up in order.
            child = subprocess.Popen(
                [name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        _children[child.pid] = child
        (STATE_FOLDER / name).write_text(f"{child.pid}\n")
        try:
            wait_until(lambda: ready() or not alive(child.pid), START_TIMEOUT, f"start of {name}")
            if not alive(child.pid):
                raise LabError(f"{name} ended at once: {self._log.read_text()[-2000:]}")
        except BaseException:
            _stop(name)
            raise


@contextmanager
def _mutex() -> Iterator[None]:
    """Only one lab user at a time starts or stops daemons."""
    STATE_FOLDER.mkdir(mode=0o700, exist_ok=True)
    with (STATE_FOLDER / "mutex").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _listens(path: str) -> bool:
    """Whether a process serves this Unix socket; the file alone may be a stale one."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def _recorded(name: str) -> int | None:
    """Process id of a daemon which a lab started and which still runs."""
    try:
        pid = int((STATE_FOLDER / name).read_text())
    except (FileNotFoundError, ValueError):
        return None
    # After a crash or reboot the number may belong to another program.
    ours = pid in _children or process_name(pid) == name
    return pid if ours and alive(pid) else None


def _stop(name: str) -> None:
    pid = _recorded(name)
    if pid is not None:
        end_process(pid)
        child = _children.pop(pid, None)
        if child is not None:
            child.wait()
    (STATE_FOLDER / name).unlink(missing_ok=True)
