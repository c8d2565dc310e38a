# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of many kinds for the domains of tests."""

from __future__ import annotations

import contextlib
import random
import typing as t
from pathlib import Path

import libvirt
from lab.domain import BlockDomain
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from lab.qemu_nbd import qemu_nbd
from loop_devices import loop_device

from _cbt.operations.backup.result import BackupResult
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.repository import Repository

MIB = 1 << 20
SIZE = 4 * MIB


def create_encrypted(folder: Path) -> None:
    """Create a LUKS image, as RAW and in qcow2. QEMU needs seconds to find out how fast it derives keys."""
    (folder / "key").write_bytes(b"secret")
    _create_encrypted(folder, "luks", "key-secret=s,iter-time=10")
    _create_encrypted(folder, "qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")


def _create_encrypted(folder: Path, fmt: str, options: str) -> None:
    """Create an image. On a busy host QEMU may be unable to measure the time that it used."""
    secret = f"secret,id=s,file={folder}/key"
    for attempt in range(50):
        try:
            run_tool(
                ["qemu-img", "create", "-q", "--object", secret, "-f", fmt, "-o", options, folder / fmt, str(SIZE)]
            )
            return
        except LabError as error:
            if "CPU usage" not in str(error) or attempt == 49:
                raise


class Bench:
    """A folder with an image of each kind, and what else the disks need."""

    def __init__(self, hypervisor: Hypervisor, folder: Path, encrypted: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self._hypervisor, self._encrypted, self._stack = folder, hypervisor, encrypted, stack
        self.base = random.Random(1).randbytes(SIZE)
        self.encryption = f"<encryption format='luks'><secret type='passphrase' uuid='{self._secret()}'/></encryption>"

    def _secret(self) -> str:
        usage = f"<usage type='volume'><volume>{self.folder}</volume></usage>"
        secret = self._hypervisor.connection.secretDefineXML(f"<secret ephemeral='yes' private='no'>{usage}</secret>")
        self._stack.callback(secret.undefine)
        secret.setValue(b"secret")
        return str(secret.UUIDString())

    def raw(self, name: str, data: bytes | None = None) -> Path:
        path = self.folder / name
        path.write_bytes(self.base if data is None else data)
        path.chmod(0o666)
        return path

    def image(self, name: str, fmt: str, options: str = "") -> Path:
        path = self.folder / name
        run_tool(["qemu-img", "create", "-q", "-f", fmt, *(["-o", options] if options else []), path, str(SIZE)])
        for made in self.folder.glob(f"{name}*"):
            made.chmod(0o666)
        return path

    def luks(self, name: str, fmt: str = "luks") -> Path:
        return self.raw(name, (self._encrypted / fmt).read_bytes())

    def filled_luks(self, name: str) -> Path:
        """A LUKS image in which the guest finds the same bytes as in a RAW one."""
        image, secret = self.luks(name), f"secret,id=s,file={self._encrypted}/key"
        target = ["--target-image-opts", f"driver=luks,key-secret=s,file.filename={image}"]
        run_tool(["qemu-img", "convert", "-n", "--object", secret, "-f", "raw", self.raw(f"{name}.raw"), *target])
        return image

    def served(self, name: str, *options: str) -> Path:
        """Serve a RAW image at a socket."""
        socket = self.folder / f"{name}.sock"
        self._stack.enter_context(qemu_nbd(self.raw(name), "raw", socket, *options))
        socket.chmod(0o777)
        return socket

    def pool(self) -> str:
        """A pool of libvirt with the volumes ``v.qcow2`` and ``v.raw``."""
        name = self.folder.parent.name + self.folder.name
        xml = f"<pool type='dir'><name>{name}</name><target><path>{self.folder}/pool</path></target></pool>"
        pool = self._hypervisor.connection.storagePoolDefineXML(xml)
        self._stack.callback(pool.undefine)
        pool.build()
        pool.create()
        self._stack.callback(pool.destroy)
        for fmt, compat in (("qcow2", "<compat>1.1</compat>"), ("raw", "")):
            target = f"<permissions><mode>0666</mode></permissions><format type='{fmt}'/>{compat}"
            volume = f"<name>v.{fmt}</name><capacity>{SIZE}</capacity><target>{target}</target>"
            pool.createXML(f"<volume>{volume}</volume>")
        return name

    def device(self, name: str, data: bytes | None = None) -> Path:
        """A loop device of the host, with a RAW image in it."""
        return self._stack.enter_context(loop_device(self.raw(name, data)))


class Row(t.NamedTuple):
    """A disk of the table: ``mode`` while the domain runs, whether it is read shut off, what it holds at first.

    If that is None, the guest fills it: unwritten parts of an encrypted image are not zeroes.
    """

    xml: str
    mode: str = "scan"
    shut_off: bool = True
    held: bytes | None = None
    writable: bool = True


def file_row(path: Path, fmt: str = "raw", inner: str = "", more: str = "", **fields: t.Any) -> Row:
    source = f"<source file='{path}'>{inner}</source>" if inner else f"<source file='{path}'/>"
    driver = f"<driver name='qemu' type='{fmt}'/>"
    return Row(f"<disk type='file'>{driver}{source}<target dev='TARGET' bus='virtio'/>{more}</disk>", **fields)


def network_row(source: str, **fields: t.Any) -> Row:
    driver = "<driver name='qemu' type='raw'/>"
    xml = f"<disk type='network'>{driver}{source}<target dev='TARGET' bus='virtio'/></disk>"
    return Row(xml, shut_off=False, **fields)


def luks_in_qcow2(bench: Bench) -> Row:
    image = bench.luks("luks.qcow2", "qcow2")
    return file_row(image, "qcow2", bench.encryption, mode="full", shut_off=False, held=bytes(SIZE))


def attach(domain: BlockDomain, disks: t.Iterable[str]) -> list[str]:
    """Add the disks to the definition; their targets."""
    targets = []
    for number, xml in enumerate(disks):
        targets.append(f"vd{chr(ord('b') + number)}")
        xml = xml.replace("TARGET", targets[-1])
        domain.handle.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    return targets


def restored(repository: Repository, result: BackupResult, folder: Path) -> dict[str, bytes]:
    """The bytes of all disks of a restore point."""
    assert result.point is not None
    folder.mkdir()
    request = RestoreRequest(result.point.domain, restore_point=result.point.id, dest=str(folder), format="raw")
    return {disk.target: Path(disk.path).read_bytes() for disk in restore(repository, request).disks}
