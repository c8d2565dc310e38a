# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small Linux guest with real file systems and the real QEMU guest agent."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import libvirt
import libvirt_qemu

from lab.base import Domain
from lab.disks import DiskSpec, create_ext4_image
from lab.domain_xml import DirectBoot
from lab.errors import LabError
from lab.guest_image import guest_image
from lab.hypervisor import Hypervisor
from lab.process import wait_until

READY_MARKER = "LAB-GUEST-READY"
PROBLEM_MARKER = "LAB-GUEST-PROBLEM"
DEFAULT_DISK = DiskSpec("vda", 256 * 1024 * 1024)
_KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 mitigations=off"
# The agent cannot read much longer requests.
_CHUNK = 32 * 1024


class LinuxGuest(Domain):
    """A direct-booted Debian kernel; each virtio disk holds ext4, mounted at /disks/TARGET.

    /data is the file system of vda. Disks with a `source` must hold ext4 already, as the
    restored image of a guest's disk does. With `agent=False` the domain has no agent channel; with `stub` the
    channel connects to a `StubAgent` there.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        disks: Sequence[DiskSpec] = (DEFAULT_DISK,),
        name: str | None = None,
        memory_mib: int = 256,
        start: bool = True,
        agent: bool = True,
        stub: Path | None = None,
    ) -> None:
        self.agent, self._stub = agent, stub
        super().__init__(hypervisor, disks, name, memory_mib, start)

    @property
    def console(self) -> str:
        """What the guest has printed since its start."""
        path = self._console_path
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_ready(self, timeout: float = 120) -> None:
        """Wait until disks are mounted and the agent answers; LabError when they do not."""
        wait_until(self._booted, timeout, f"boot of {self.name}", step=0.2)
        if PROBLEM_MARKER in self.console:
            raise LabError(f"{self.name} did not boot well:\n{self.console[-2000:]}")
        if self.agent:
            wait_until(self.agent_answers, timeout, f"agent of {self.name}", step=0.2)

    def run(self, command: str, timeout: float = 120) -> tuple[int, str]:
        """Run a shell command through the agent; its exit code and all it printed."""
        started = self.agent_command(
            "guest-exec",
            {"path": "/bin/sh", "arg": ["-c", f"exec 2>&1\n{command}"], "capture-output": True},
        )
        status: dict[str, Any] = {}

        def ended() -> bool:
            status.update(self.agent_command("guest-exec-status", started))
            return bool(status["exited"])

        wait_until(ended, timeout, f"{command!r} in {self.name}")
        output = base64.b64decode(status.get("out-data", "")).decode(errors="replace")
        return int(status.get("exitcode", 128 + status.get("signal", 0))), output

    def check(self, command: str, timeout: float = 120) -> str:
        """Run a shell command which must succeed, and return what it printed."""
        code, output = self.run(command, timeout)
        if code != 0:
            raise LabError(f"{command!r} in {self.name} ended with {code}: {output.strip()}")
        return output

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file in the guest; it may still be in the guest's cache, see `sync`."""
        handle = self.agent_command("guest-file-open", {"path": path, "mode": "w"})
        for start in range(0, len(data), _CHUNK):
            text = base64.b64encode(data[start : start + _CHUNK]).decode()
            self.agent_command("guest-file-write", {"handle": handle, "buf-b64": text})
        self.agent_command("guest-file-close", {"handle": handle})

    def write_random_file(self, path: str, size: int) -> str:
        """Write a file of random bytes made by the guest and return its SHA-256."""
        self.check(f"head -c {size} /dev/urandom > {quote(path)}")
        return self.sha256(path)

    def sha256(self, path: str) -> str:
        """SHA-256 of a file in the guest."""
        return self.check(f"sha256sum {quote(path)}").split()[0]

    def sync(self) -> None:
        """Let the guest write its caches to the disks."""
        self.check("sync")

    def frozen(self) -> bool:
        """Whether the agent says that file systems are frozen."""
        return bool(self.agent_command("guest-fsfreeze-status") == "frozen")

    def kill_agent(self) -> None:
        """End the agent for good; its channel stays, disconnected."""
        self._signal_agent("KILL")

    def hang_agent(self) -> None:
        """Suspend the agent: it stays connected, but answers only after `continue_agent`."""
        size = "cat /sys/block/vda/size"
        self._signal_agent("STOP", f"old=$({size}); while [ $({size}) = $old ]; do sleep 0.2; done; kill -CONT $agent")

    def continue_agent(self) -> None:
        """Continue an agent that hangs. The guest sees the order in the size of vda, which grows by 1 MiB."""
        size = self.handle.blockInfo("vda")[0]
        self.handle.blockResize("vda", size + (1 << 20), libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        wait_until(self.agent_answers, 30, f"agent of {self.name}")

    def agent_answers(self) -> bool:
        """Whether the agent answers within a second."""
        try:
            self.agent_command("guest-ping", timeout=1)
        except libvirt.libvirtError:
            return False
        return True

    def agent_command(self, command: str, arguments: dict[str, Any] | None = None, timeout: int = 30) -> Any:
        """Run an agent command and return its value; libvirtError when the agent refuses."""
        request = json.dumps({"execute": command, "arguments": arguments or {}})
        answer = libvirt_qemu.qemuAgentCommand(self.handle, request, timeout, 0)
        return json.loads(answer)["return"]

    @property
    def _console_path(self) -> Path:
        return self.folder / "console.log"

    def _booted(self) -> bool:
        if not self.running:
            raise LabError(f"{self.name} ended while it booted:\n{self.console[-2000:]}")
        return READY_MARKER in self.console

    def _signal_agent(self, name: str, after: str = ":") -> None:
        # Later, so that the agent can still answer that the command runs.
        command = f"(agent=$(pidof qemu-ga); sleep 1; kill -{name} $agent; {after}) >/dev/null 2>&1 &"
        self.check(command)
        wait_until(lambda: not self.agent_answers(), 30, f"end of the agent of {self.name}")

    def _direct_boot(self) -> DirectBoot:
        image = guest_image()
        # Own copies: libvirt changes the owner of what a domain boots from.
        kernel, initramfs = self.folder / "kernel", self.folder / "initramfs"
        shutil.copy(image.kernel, kernel)
        shutil.copy(image.initramfs, initramfs)
        arguments = f"{_KERNEL_ARGUMENTS} lab.agent={int(self.agent)}"
        return DirectBoot(kernel, initramfs, arguments, self._console_path, self.agent, self._stub)

    def _make_image(self, spec: DiskSpec, path: Path) -> None:
        if spec.device == "disk":
            create_ext4_image(spec, path)
        else:
            super()._make_image(spec, path)
