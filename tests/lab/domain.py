# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain for exact block patterns."""

from __future__ import annotations

import random

import libvirt_qemu

from lab.base import Domain
from lab.disks import DiskSpec
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.qemu_io import QemuIo

__all__ = ["BlockDomain", "DiskSpec", "Domain"]

# QEMU allocates the whole request of a write.
_LARGEST_WRITE = 64 * 1024 * 1024


class BlockDomain(Domain):
    """A domain without operating system, into whose disks tests write exact bytes."""

    _qemu_io: QemuIo | None = None

    def write(self, target: str, offset: int, length: int, pattern: int) -> None:
        """Fill a range with one byte value; LabError when QEMU could not."""
        for start, size in _pieces(offset, length):
            self._transfer(target, f"write -P {pattern:#x}", start, size)

    def write_random(self, target: str, offset: int, length: int, seed: int = 0) -> bytes:
        """Write bytes that do not compress, the same for the same seed, and return them."""
        data = random.Random(seed).randbytes(length)
        self.write_bytes(target, offset, data)
        return data

    def write_bytes(self, target: str, offset: int, data: bytes) -> None:
        """Write these bytes."""
        # QEMU opens the file itself, as its own user.
        path = self.folder / "pattern"
        for start, size in _pieces(offset, len(data)):
            path.write_bytes(data[start - offset : start - offset + size])
            path.chmod(0o644)
            self._transfer(target, f"write -s {path}", start, size)
        path.unlink(missing_ok=True)

    def write_zeroes(self, target: str, offset: int, length: int, unmap: bool = False) -> None:
        """Zero a range with a write-zeroes request, which may also give back its space."""
        self._transfer(target, "write -z -u" if unmap else "write -z", offset, length)

    def discard(self, target: str, offset: int, length: int) -> None:
        """Discard a range."""
        self._transfer(target, "discard", offset, length)

    def flush(self, target: str) -> None:
        """Flush the disk's writes to its image."""
        printed = self._io().run(self._device(target), "flush")
        if printed:
            raise LabError(f"flush of {target}: {printed.strip()}")

    def start(self) -> None:
        """Start the domain."""
        self._forget_qemu()
        super().start()

    def moved_to(self, hypervisor: Hypervisor) -> None:
        """Go on with the domain on another hypervisor, to which somebody moved it; see moving.py."""
        self._forget_qemu()
        super().moved_to(hypervisor)

    def close(self) -> None:
        """Destroy, undefine and delete the domain's images. May be called twice."""
        self._forget_qemu()
        super().close()

    def _transfer(self, target: str, command: str, offset: int, length: int) -> None:
        self._io().transfer(self._device(target), command, offset, length)

    def _device(self, target: str) -> str:
        alias = self._disk(target).find("alias")
        if alias is None:
            raise LabError(f"{self.name} does not run")
        return f"/machine/peripheral/{alias.attrib['name']}/virtio-backend"

    def _io(self) -> QemuIo:
        if self._qemu_io is None:
            self._qemu_io = QemuIo(self._human_monitor, self.qemu_log)
        return self._qemu_io

    def _human_monitor(self, command: str) -> str:
        flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        return str(libvirt_qemu.qemuMonitorCommand(self.handle, command, flags))

    def _forget_qemu(self) -> None:
        if self._qemu_io is not None:
            self._qemu_io.close()
            self._qemu_io = None


def _pieces(offset: int, length: int) -> list[tuple[int, int]]:
    """Split a range into (offset, length) pieces QEMU writes at once."""
    end = offset + length
    return [(start, min(_LARGEST_WRITE, end - start)) for start in range(offset, end, _LARGEST_WRITE)]
