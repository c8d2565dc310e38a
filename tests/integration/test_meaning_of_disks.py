# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that shows other content than before, although its bitmaps are sound, is read in full, with the reason."""

from __future__ import annotations

from pathlib import Path

import libvirt
from kinds import MIB, SIZE, Bench, attach, file_row, restored
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from witness import ask, session_of, witnessed_backup

from _cbt.hypervisor.domain_xml.disks import Selection
from _cbt.operations.backup.backup import backup
from _cbt.repository.repository import Repository

BLOCK = 65536
BASES = {"base-a": b"a", "base-b": b"b"}
FILES = "has other backing or data files"
# By target: how it is read after its change, and why.
CHANGED = {
    "vdb": ("full", FILES),  # qemu-img rebase -u
    "vdc": ("full", FILES),  # another backing chain in the definition
    "vdd": ("full", FILES),  # another data file
    "vde": ("scan", "a RAW image"),  # RAW at the same path
    "vdf": ("full", "bitmap"),  # encrypted, at the same path
    "vdg": ("full", "bitmap"),  # another image under the same target
    "vdh": ("incremental", ""),  # the same file, no longer as a volume
}


class Scene:
    """A domain with a disk for each row. Between two backups, each shows the guest something else, or not."""

    def __init__(self, bench: Bench, domain: BlockDomain) -> None:
        self.bench, self.domain, self.folder = bench, domain, bench.folder
        # The bases differ in one block, which a sample of unmarked blocks is unlikely to contain.
        self.bases = [bench.raw(name, bytes(40 * BLOCK) + byte * BLOCK + bytes(SIZE)) for name, byte in BASES.items()]
        self.data = [bench.raw(f"data{number}", byte * SIZE) for number, byte in enumerate((b"c", b"d"))]
        pool = bench.pool()
        volume = f"<source pool='{pool}' volume='v.qcow2'/><target dev='TARGET' bus='virtio'/>"
        self.targets = attach(
            domain,
            [
                file_row(self.overlay("rebased"), "qcow2").xml,
                file_row(self.overlay("redefined"), "qcow2", more=self.chain(0)).xml,
                file_row(self.with_data(), "qcow2").xml,
                file_row(bench.image("replaced", "qcow2"), "qcow2").xml,
                file_row(bench.image("encrypted", "qcow2"), "qcow2").xml,
                file_row(bench.image("reused", "qcow2"), "qcow2").xml,
                f"<disk type='volume'><driver name='qemu' type='qcow2'/>{volume}</disk>",
            ],
        )

    def overlay(self, name: str) -> Path:
        path = self.folder / name
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.bases[0], "-F", "raw", path])
        path.chmod(0o666)
        return path

    def with_data(self) -> Path:
        options = f"data_file={self.data[0]},data_file_raw=on"
        path = self.bench.image("external", "qcow2", options)
        self.data[0].write_bytes(b"c" * SIZE)
        return path

    def chain(self, number: int) -> str:
        source = f"<format type='raw'/><source file='{self.bases[number]}'/><backingStore/>"
        return f"<backingStore type='file'>{source}</backingStore>"

    def rebase(self, number: int) -> None:
        base = ["-b", self.bases[number], "-F", "raw"]
        run_tool(["qemu-img", "rebase", "-u", "-f", "qcow2", *base, self.folder / "rebased"])

    def change(self) -> None:
        """Change the meaning of each disk while the domain is off; the volume becomes the file that it is."""
        self.rebase(1)
        run_tool(["qemu-img", "amend", "-f", "qcow2", "-o", f"data_file={self.data[1]}", self.folder / "external"])
        self.bench.raw("replaced")
        luks = self.bench.luks("encrypted", "qcow2")
        self.define("vdc", file_row(self.folder / "redefined", "qcow2", more=self.chain(1)).xml)
        self.define("vde", file_row(self.folder / "replaced").xml)
        self.define("vdf", file_row(luks, "qcow2", self.bench.encryption).xml)
        self.define("vdg", file_row(self.bench.image("another", "qcow2"), "qcow2").xml)
        self.define("vdh", file_row(self.folder / "pool/v.qcow2", "qcow2").xml)

    def define(self, target: str, xml: str) -> None:
        """Replace a disk of the definition."""
        handle, flags = self.domain.handle, libvirt.VIR_DOMAIN_AFFECT_CONFIG
        handle.detachDeviceFlags(f"<disk type='file'><target dev='{target}'/></disk>", flags)
        handle.attachDeviceFlags(xml.replace("TARGET", target), flags)


def test_each_disk_is_read_for_what_it_shows_now(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, bench: Bench
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        scene, session = Scene(bench, domain), session_of(domain)
        domain.start()
        first = backup(session, repository, ask(domain.name))
        assert {disk.mode for disk in first.disks} == {"full"}
        domain.destroy()
        scene.change()
        domain.start()
        second = witnessed_backup(domain, repository, workspace)
        found = {disk.target: (disk.mode, disk.reason) for disk in second.result.disks[1:]}
        assert {target: mode for target, (mode, _why) in found.items()} == {
            target: mode for target, (mode, _why) in CHANGED.items()
        }
        assert [target for target, (_mode, why) in CHANGED.items() if why not in found[target][1]] == []
        got = restored(repository, second.result, workspace / "second")
        assert [target for target, copy in second.copies.items() if got[target] != copy.read_bytes()] == []
        assert got["vdb"] == got["vdc"] == scene.bases[1].read_bytes() and got["vdd"] == scene.data[1].read_bytes()

        domain.destroy()
        scene.rebase(0)
        images = ask(domain.name, selection=Selection(("vda", "vdb", "vdd", "vdh")))
        for mode in ("full", "incremental"):
            third = backup(session, repository, images)
            assert {disk.target: disk.mode for disk in third.disks if disk.mode != "skipped"} == {
                "vda": "incremental",
                "vdb": mode,
                "vdd": "incremental",
                "vdh": "incremental",
            }
            assert restored(repository, third, workspace / mode)["vdb"] == scene.bases[0].read_bytes()
        domain.start()
        last = backup(session, repository, images)
        assert {disk.mode for disk in last.disks if disk.mode != "skipped"} == {"incremental"}
