# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of a server. It runs from an archive of the engine, without Ansible.

A first process holds what must last: the listening socket, private writes, and what was sent to it. It starts a second
one that reads the repository and answers clients, and another one if that dies. Clients then wait or connect again, and
find everything as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
import traceback
import typing as t

from ...blocks.server.disk import Disk
from ...blocks.server.listener import Listener, ServerOptions, tls_context
from ...blocks.server.overlay import Overlay, Storage
from ...errors import CbtError, Refused
from ...files import delete
from ...parallel import default_workers
from ...repository.format import manifests, names
from ...repository.location import RepositoryLocation, received
from ...repository.repository import Repository, open_repository
from ...repository.views.disk_view import CacheOptions, Views
from ...repository.views.pack_cache import FETCHES
from ...trusted_files import opened, upwards
from . import exports
from .plan import ExportPlan, TcpAddress, UnixAddress

_BACKLOG = 64  # clients that wait for the next process
_LONGEST_PAUSE = 30.0  # seconds between two attempts to serve
_LIVED = 10.0  # seconds after which a process did not fail at once
_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_MOST_REPORTS = 1000
_CONNECT_WITHIN = 5.0  # seconds
_LOCK_ATTEMPTS, _LOCK_PAUSE = 100, 0.02  # seconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the module sends: the plan, the manifest of the restore point, and the location as it is handed on."""

    plan: ExportPlan
    manifest: str
    location: t.Mapping[str, t.Any]

    def encode(self) -> dict[str, t.Any]:
        """Return the settings as JSON can carry them."""
        return {"plan": exports.as_data(self.plan), "manifest": self.manifest, "location": self.location}


def main() -> None:
    """Serve the export in the folder that is the only argument."""
    folder = sys.argv[1]
    with socket.socket(socket.AF_UNIX) as module:
        with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as handle:
            module.connect(f"/proc/self/fd/{handle}/{exports.START}")
        given = json.loads(b"".join(iter(lambda: module.recv(1 << 16), b"")))
        try:
            settings = Settings(**{**given, "plan": exports.plan_of(given["plan"])})
            os.umask(0o077)
            lock = _locked(os.path.join(folder, exports.LOCK))
            server = _Server(settings)
        except CbtError as error:
            module.sendall(json.dumps({"error": str(error)}).encode())
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDING, signal.SIGCHLD})
        first = _started(server)
        module.sendall(first.report)
        module.shutdown(socket.SHUT_WR)  # the child has it open, too
    if first.serves:
        _supervise(server, first)
    server.close()
    os.close(lock)


def _locked(path: str) -> int:
    """Lock a file for as long as this process or a child of it lives, and write the process id to it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _attempt in range(_LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(_LOCK_PAUSE)  # a process that asks whether a server runs holds it for a moment
    else:
        raise Refused("its server runs already.")
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


@dataclasses.dataclass(frozen=True)
class _Child:
    """The process that answers clients; ``report`` is what it said when it began to, empty if it died before."""

    pid: int
    report: bytes
    began: float
    alive: int  # the end of a pipe; closed, it ends the child

    @property
    def serves(self) -> bool:
        """Return whether it began to answer clients."""
        return bool(self.report) and "pid" in json.loads(self.report)


def _started(server: _Server) -> _Child:
    read, write = os.pipe()
    lives, alive = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        os.close(read)
        _answer_clients(server, write, lives)
    os.close(write)
    os.close(lives)
    with open(read, "rb") as file:
        report = file.read()
    return _Child(pid, report, began, alive)


def _answer_clients(server: _Server, report: int, lives: int) -> t.NoReturn:
    """Serve in a child process, until the first process is gone."""

    def end_with_parent() -> None:
        os.read(lives, 1)
        os._exit(1)

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_ENDING, signal.SIGCHLD})
        threading.Thread(target=end_with_parent, daemon=True).start()
        listener = server.prepare()
        os.write(report, json.dumps({"pid": os.getppid()}).encode())
        os.close(report)
        listener.serve()
    except CbtError as error:
        os.write(report, json.dumps({"error": str(error)}).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _supervise(server: _Server, child: _Child) -> None:
    """Start another process whenever one dies, until a signal ends the export."""
    pause = 0.0
    while _waited(child):
        pause = 0.0 if time.monotonic() - child.began > _LIVED else min(_LONGEST_PAUSE, pause * 2 + 0.1)
        _say(f"the process that answers clients died; the next one starts in {pause:.1f} s")
        if signal.sigtimedwait(_ENDING, pause) is not None:
            return
        child = _started(server)


def _waited(child: _Child) -> bool:
    """Wait for the end of the child, and return True. Return False after a signal has ended it."""
    while True:
        ending = signal.sigwait({*_ENDING, signal.SIGCHLD}) != signal.SIGCHLD
        if ending:
            os.kill(child.pid, signal.SIGKILL)
        if os.waitpid(child.pid, 0 if ending else os.WNOHANG)[0]:
            os.close(child.alive)
            return not ending


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class _Server:
    """The listening socket and the private writes, and what a process needs to answer clients."""

    def __init__(self, settings: Settings) -> None:
        """Raises CbtError if the socket cannot be made."""
        self._settings, plan = settings, settings.plan
        self._location: RepositoryLocation = received(settings.location)
        overlay = plan.folders.overlay
        self._storage = {target: Storage(overlay, size) for target, size in plan.disks.items()} if overlay else {}
        self._listening = _unix(plan, plan.address) if isinstance(plan.address, UnixAddress) else _tcp(plan.address)
        self._listening.listen(_BACKLOG)
        self._reports = 0

    def prepare(self) -> Listener:
        """Open the repository and the disks. Raises CbtError."""
        plan, address = self._settings.plan, self._settings.plan.address
        tls = tls_context(address.certificates) if isinstance(address, TcpAddress) and address.certificates else None
        cache = CacheOptions(plan.folders.cache, plan.folders.cache_size) if plan.folders.cache else None
        repository = self._repository()
        point = manifests.decode(
            self._settings.manifest.encode(errors="surrogatepass"), names.manifest(plan.uuid, plan.restore_point)
        )
        views = Views(repository, cache)
        disks: dict[str, Disk] = {target: views.open(point, target) for target in plan.disks}
        for target, storage in self._storage.items():
            disks[target] = Overlay(disks[target], storage)
        # More than decode at once: the others send, or wait for the store.
        workers = max(default_workers(), FETCHES if cache is not None else 0)
        return Listener(self._listening, disks, ServerOptions(workers, tls, self._report))

    def _repository(self) -> Repository:
        repository = open_repository(self._location)
        if repository.id != self._settings.plan.repository:
            raise Refused(
                f"The repository {self._location.location} is not the one that was there when the export began."
            )
        return repository

    def _report(self, text: str) -> None:
        self._reports += 1
        if self._reports <= _MOST_REPORTS:
            _say(text)

    def close(self) -> None:
        """Delete the socket."""
        self._listening.close()
        if self._settings.plan.socket is not None:
            delete(self._settings.plan.socket)


def _unix(plan: ExportPlan, address: UnixAddress) -> socket.socket:
    """Return a Unix socket with the owner and mode of the plan, in a folder where only this user or root can write."""
    path = plan.socket or ""
    listening = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(address.folder)
            os.chmod(address.folder, 0o755)  # QEMU's user must be able to enter it
        _check_folder(os.path.realpath(address.folder), path)
        _clear(path)
        listening.bind(path)  # under umask 077 until it has its owner
        os.chown(path, address.owner, address.group)
        os.chmod(path, address.mode)
    except OSError as error:
        listening.close()
        raise CbtError(f"Cannot create the socket {path}: {error.strerror}. Set another socket_dir.") from error
    return listening


def _check_folder(folder: str, path: str) -> None:
    """Raise Refused if another user could put a socket in the place of that at ``path``, or exchange the folder."""
    for each, status in upwards(folder):
        writable = status.st_mode & 0o022 and (each == folder or not status.st_mode & stat.S_ISVTX)
        if writable or status.st_uid not in (0, os.geteuid()):
            raise Refused(
                f"Others can write to {each}, so they could put a socket of theirs at {path}. Set another socket_dir."
            )


def _clear(path: str) -> None:
    """Delete the socket of a server that was killed. Raises Refused if there is anything else at its path."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Refused(f"{path} exists and is not a socket. Move it away, or set another name or socket_dir.")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CONNECT_WITHIN)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise Refused(f"Another process serves the socket {path}. Set another name or socket_dir.")


def _tcp(address: TcpAddress) -> socket.socket:
    try:
        return socket.create_server(
            (address.address, address.port), family=socket.AF_INET6 if ":" in address.address else socket.AF_INET
        )
    except OSError as error:
        raise CbtError(
            f"Cannot listen on {address.address} port {address.port}: {error.strerror or error}. Set another address or"
            " port."
        ) from error
