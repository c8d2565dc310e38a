# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of all kinds come back as plain ones: with the content that the guest saw, and under a definition that says so."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

from kinds import MIB, SIZE, Bench, attach, file_row, luks_in_qcow2
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from loop_devices import loop_device
from restored import new_name, refused, removed
from witness import ask, session_of

from _cbt.hypervisor.domain_xml.disks import parse_disks
from _cbt.images import qcow2_layout
from _cbt.operations.backup.backup import backup
from _cbt.operations.restore.restore import MachineOptions, RestoreRequest, restore
from _cbt.repository.repository import Repository


def content(path: Path | str, fmt: str, folder: Path) -> bytes:
    """The bytes of a disk, read by qemu-img."""
    plain = folder / "plain"
    run_tool(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, plain])
    return plain.read_bytes()


class Original:
    """A domain with disks of some kinds, which its guest filled, and a backup of it."""

    def __init__(
        self, stack: contextlib.ExitStack, hypervisor: Hypervisor, repository: Repository, disks: t.Iterable[str]
    ) -> None:
        self.domain = stack.enter_context(BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False))
        targets = attach(self.domain, disks)
        self.domain.start()
        self.session = session_of(self.domain)
        self.held = {target: self.domain.write_random(target, 0, MIB, 9) for target in targets}
        backup(self.session, repository, ask(self.domain.name))
        self.domain.destroy()
        found = {disk.target: disk for disk in parse_disks(self.domain.xml(inactive=True))}
        self.paths = {target: str(found[target].source) for target in targets}


def layered(bench: Bench) -> list[str]:
    slices = f"<slices><slice type='storage' offset='{MIB}' size='{2 * MIB}'/></slices>"
    luks = file_row(bench.luks("luks"), inner=bench.encryption)
    return [luks.xml, luks_in_qcow2(bench).xml, file_row(bench.raw("slice"), inner=slices).xml]


def test_a_machine_starts_with_the_content_that_the_guest_saw(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, bench: Bench
) -> None:
    """As a copy, with one disk on a device; then in place of the original, which nothing else may replace."""
    name, out = new_name(), workspace / "out"
    out.mkdir()
    with contextlib.ExitStack() as stack:
        original = Original(stack, hypervisor, repository, layered(bench))
        session, domain, paths = original.session, original.domain, original.paths
        stack.enter_context(removed(session, name))
        before = {path: Path(path).read_bytes() for path in paths.values()}
        for target, path in paths.items():
            for fmt in ("raw", "qcow2"):
                over = RestoreRequest(domain.name, disk_map={target: path}, format=fmt, force=True)
                refused(repository, session, over, f"{target} is .* or replace the domain with define: true")
        copying: dict[str, t.Any] = {"dest": str(out), "force": True, "new_name": name}
        copy = MachineOptions(new_uuid=True, start=True)
        wrong = RestoreRequest(domain.name, disk_map=paths, machine=copy, **copying)
        refused(repository, session, wrong, f"{domain.name} could not read it")
        onto = {"vdb": str(bench.device("device", bytes(2 * SIZE)))}
        done = restore(repository, RestoreRequest(domain.name, disk_map=onto, machine=copy, **copying), session)
        assert not any(disk.layers for disk in parse_disks(session.api.lookupByName(name).XMLDesc(0)))
        session.api.lookupByName(name).destroy()
        read = {disk.target: content(disk.path, "qcow2", workspace)[:MIB] for disk in done.disks[1:]}
        assert read == original.held
        assert [each.split()[:3] for each in done.warnings if "plain text" in each] == [
            [target, "was", "encrypted,"] for target in ("vdb", "vdc")
        ]
        assert {path: Path(path).read_bytes() for path in before} == before

        in_place = RestoreRequest(
            domain.name, dest=str(workspace), disk_map=paths, force=True, machine=MachineOptions(start=True)
        )
        predicted = restore(repository, in_place, session, check_only=True)
        assert restore(repository, in_place, session).warnings == predicted.warnings
        domain.destroy()
        assert {target: content(path, "qcow2", workspace)[:MIB] for target, path in paths.items()} == original.held


def test_an_image_is_replaced_in_the_format_of_the_definition_only(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, bench: Bench
) -> None:
    """Also an image that was lost, and a volume of a pool."""
    volume = f"<source pool='{bench.pool()}' volume='v.raw'/><target dev='TARGET' bus='virtio'/>"
    disks = [file_row(bench.raw("raw")).xml, f"<disk type='volume'><driver name='qemu' type='raw'/>{volume}</disk>"]
    with contextlib.ExitStack() as stack:
        original = Original(stack, hypervisor, repository, disks)
        name, session = original.domain.name, original.session
        paths = {"vdb": str(workspace / "raw"), "vdc": str(workspace / "pool/v.raw")}
        Path(paths["vdb"]).unlink()
        for target, path in paths.items():
            over = RestoreRequest(name, disk_map={target: path}, force=True)
            refused(repository, session, over, f"{target} is raw, not qcow2 \\(set format: raw\\)")
        restore(repository, RestoreRequest(name, disk_map=paths, force=True, format="raw"), session)
        original.domain.start()
        assert {target: Path(path).read_bytes()[:MIB] for target, path in paths.items()} == original.held


def test_a_device_without_space_for_bitmaps_is_in_the_warnings_and_one_with_it_keeps_them(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    full = qcow2_layout.plan(SIZE, []).full_size
    backing = workspace / "backing"
    backing.touch()
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain, contextlib.ExitStack() as stack:
        session = session_of(domain)
        domain.write_random("vda", 0, SIZE, 1)
        backup(session, repository, ask(domain.name))
        domain.destroy()
        smallest = qcow2_layout.plan(SIZE, [(0, SIZE)]).file_size
        for size, expected in ((smallest - 65536, None), (smallest, 1), (full, 0)):
            with backing.open("r+b") as file:
                file.truncate(size)
            device = str(stack.enter_context(loop_device(backing)))
            request = RestoreRequest(domain.name, disk_map={"vda": device}, force=True)
            if expected is None:
                refused(repository, session, request, "Choose a larger one")
                continue
            done = restore(repository, request, session)
            assert sum("changes are not tracked" in each for each in done.warnings) == expected
            with BlockDomain(hypervisor, [DiskSpec("vda", source=Path(device))]) as restored:
                backup(session, repository, ask(restored.name))
                restored.write_random("vda", 0, SIZE, 2)
                restored.destroy()
                modes = [backup(session, repository, ask(restored.name)).disks[0].mode for _each in range(2)]
                assert modes == (["full"] * 2 if expected else ["incremental"] * 2)
            run_tool(["qemu-img", "check", "-q", "-f", "qcow2", device])
