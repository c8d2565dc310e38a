# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several hypervisors on one machine: nodes with a libvirt and an address of their own.

A node is a process in its own namespaces, with an overlay on a root file system that is thrown
away at the end. It sees nothing of the machine's domains, daemons, network and temporary files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.cache import cache_folder
from lab.closing import Closing
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.namespaces import Namespaces
from lab.network import Network
from lab.process import end_process, wait_until
from lab.ssh import Ssh
from lab.tree import sshd_files

CHECKOUT = Path(__file__).resolve().parents[2]
_INIT = Path(__file__).with_name("node-init.sh")
_SOCKET = Path("/run/libvirt/libvirt-sock")
_START_TIMEOUT = 60.0


class Node(Closing):
    """One hypervisor of a cluster, with Python and the checkout (read-only) in the usual places."""

    def __init__(
        self,
        name: str,
        number: int,
        network: Network,
        folder: Path,
        storage: Path,
        tree: Path | None = None,
        ssh: Ssh | None = None,
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        """Start a node; use `Cluster`, which makes the parts.

        `storage` is a folder of this machine which the node has under the same path, `tree` the
        root file system instead of this machine's own one, `hosts` the addresses it knows.
        """
        self.name = name
        self.address = network.node_address(number)
        self.storage = storage
        self._hypervisor: Hypervisor | None = None
        folder.mkdir()
        self._log = folder / "log"
        self._prepare_files(folder / "files", ssh, hosts or {name: self.address})
        if ssh and tree is None:
            # Not a second lower layer of the overlay, which may not be within the first.
            shutil.copytree(sshd_files(), folder / "files", dirs_exist_ok=True, symlinks=True)
        program = [
            "sh",
            _INIT,
            name,
            folder,
            tree or "/",
            *(f"ro:{path}" for path in (CHECKOUT, cache_folder())),
            f"rw:{storage}",
        ]
        self._namespaces = Namespaces(["mount", "uts", "pid", "ipc", "net"], program, self._log)
        try:
            network.join(self._namespaces, number)
            # Before, the node's paths are those of this machine: its libvirtd would answer.
            wait_until(self._has_own_root, _START_TIMEOUT, f"root file system of {name}")
            self._hypervisor = NodeHypervisor(self)
        except BaseException:
            self.close()
            raise

    @property
    def hypervisor(self) -> Hypervisor:
        """The node's libvirt; its folders are on the node's storage."""
        if self._hypervisor is None:
            raise LabError(f"{self.name} is closed")
        return self._hypervisor

    @property
    def pid(self) -> int:
        """The id by which this process knows the node's first process."""
        return self._namespaces.pid

    @property
    def uri(self) -> str:
        """The libvirt of the node, for this process."""
        return f"qemu+unix:///system?socket={self.path(_SOCKET)}"

    @property
    def log(self) -> str:
        """What the node's first process and daemons printed."""
        return self._log.read_text(errors="replace")

    def path(self, path: Path) -> Path:
        """Where an absolute path of the node is seen by this process (its links to absolute paths are not)."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")

    def process(self, pid: int) -> int:
        """The id by which this process knows a process of the node."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                (ids,) = (line.split()[1:] for line in status.read_text().splitlines() if line.startswith("NSpid:"))
                if int(ids[-1]) == pid and os.readlink(status.with_name("ns") / "pid") == namespace:
                    return int(ids[0])
            except OSError:
                continue  # ended meanwhile, or one of the machine's that even root must not ask
        raise LabError(f"{self.name} has no process {pid}")

    def command(self, words: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> list[str]:
        """The command that runs a program inside, in the node's root folder and with an environment of its own.

        A signal to it does not reach the program; when the node ends, the program does too.
        """
        settings = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            **(environment or {}),
        }
        inside = ["env", "-i", *(f"{name}={value}" for name, value in settings.items()), *words]
        return self._namespaces.command(inside)

    def run(
        self,
        words: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end, whatever it ends with."""
        command = self.command(words, environment)
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)

    @contextmanager
    def without_libvirtd(self) -> Iterator[None]:
        """End libvirtd for the block. Running domains continue."""
        end_process(self.process(int(self.path(Path("/run/libvirtd.pid")).read_text())))
        try:
            yield
        finally:
            started = self.run(["libvirtd", "-d"])
            if started.returncode != 0:
                raise LabError(f"libvirtd of {self.name}: {started.stderr}")

    def close(self) -> None:
        """Remove domains, then the node. May be called twice."""
        hypervisor, self._hypervisor = self._hypervisor, None
        try:
            if hypervisor is not None:
                hypervisor.close()
        finally:
            self._namespaces.close()

    def check_running(self) -> None:
        """LabError with what the node printed when its first process has ended."""
        if not self._namespaces.running:
            raise LabError(f"{self.name} ended: {self.log[-2000:]}")

    def _has_own_root(self) -> bool:
        self.check_running()
        return not self.path(Path("/")).samefile("/")

    def _prepare_files(self, root: Path, ssh: Ssh | None, hosts: Mapping[str, str]) -> None:
        """What the node has in place of files of its root file system."""
        libvirt = root / "etc/libvirt"
        libvirt.mkdir(parents=True)
        # libvirt refuses to migrate between hosts of one identity, and this machine has one only.
        # The socket's client has no process id in there, so polkit could not judge it.
        (libvirt / "libvirtd.conf").write_text(f'host_uuid = "{uuid.uuid4()}"\nauth_unix_rw = "none"\n')
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in hosts.items())]
        (root / "etc/hosts").write_text("".join(f"{line}\n" for line in lines))
        (root / "etc/hostname").write_text(f"{self.name}\n")
        if ssh is not None:
            ssh.install(root)


class NodeHypervisor(Hypervisor):
    """The libvirt of a node, reached from outside."""

    def __init__(self, node: Node) -> None:
        self._node = node
        super().__init__(node.uri, node.storage)

    def _services(self) -> NodeServices:
        return NodeServices(self._node, self._answers)

    def path(self, path: Path) -> Path:
        """Where a file of the node is seen by this process."""
        return self._node.path(path)

    def process(self, pid: int) -> int:
        """The id by which this process knows a process of the node."""
        return self._node.process(pid)


class NodeServices:
    """The daemons of a node: they come and go with it."""

    started_by_lab = True

    def __init__(self, node: Node, answers: Callable[[], bool]) -> None:
        self._node = node
        self._answers = answers

    def acquire(self) -> None:
        """Wait for libvirtd, which the node's first process starts."""

        def ready() -> bool:
            self._node.check_running()
            return self._answers()

        wait_until(ready, _START_TIMEOUT, f"start of {self._node.name}")

    def release(self) -> None:
        """Nothing to leave."""

    def restart_libvirtd(self) -> None:
        """Stop and start libvirtd."""
        with self._node.without_libvirtd():
            pass
        self.acquire()
