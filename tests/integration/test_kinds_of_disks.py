# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of all kinds that can exist here, running and shut off: read as the guest sees them, refused, or left out with a warning.

What is expected was written through the guest's own device, or lay in a RAW image before.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from lab.qemu_nbd import qemu_nbd, running
from witness import ask, session_of

from _cbt.errors import HypervisorError, Refused
from _cbt.operations.backup.backup import backup
from _cbt.operations.backup.result import BackupResult
from _cbt.operations.convert.convert import convert_disks
from _cbt.operations.convert.plan import ConversionOptions
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.repository import Repository

MIB = 1 << 20
SIZE = 4 * MIB
AT = MIB + 12345 // 512 * 512


@pytest.fixture(scope="module")
def encrypted(hypervisor: Hypervisor) -> Path:
    """A folder with a LUKS image, as RAW and in qcow2. QEMU needs seconds to find out how fast it derives keys."""
    folder = hypervisor.folder()
    (folder / "key").write_bytes(b"secret")
    _create_encrypted(folder, "luks", "key-secret=s,iter-time=10")
    _create_encrypted(folder, "qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    return folder


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

    def served(self, name: str, *options: str) -> Path:
        """Serve a RAW image at a socket."""
        socket = self.folder / f"{name}.sock"
        self._stack.enter_context(qemu_nbd(self.raw(name), "raw", socket, *options))
        socket.chmod(0o777)
        return socket

    def pool(self) -> str:
        """A pool of libvirt with one volume, ``v.qcow2``."""
        name = self.folder.parent.name + self.folder.name
        xml = f"<pool type='dir'><name>{name}</name><target><path>{self.folder}/pool</path></target></pool>"
        pool = self._hypervisor.connection.storagePoolCreateXML(xml, libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)
        self._stack.callback(pool.destroy)
        target = (
            "<target><permissions><mode>0666</mode></permissions><format type='qcow2'/><compat>1.1</compat></target>"
        )
        pool.createXML(f"<volume><name>v.qcow2</name><capacity>{SIZE}</capacity>{target}</volume>")
        return name


@pytest.fixture
def bench(hypervisor: Hypervisor, workspace: Path, encrypted: Path) -> t.Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        yield Bench(hypervisor, workspace, encrypted, stack)


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


def table(bench: Bench) -> dict[str, Row]:
    slices = f"<slices><slice type='storage' offset='{MIB}' size='{2 * MIB}'/></slices>"
    unix = "<host transport='unix' socket='{}'/>"
    zeroes = bytes(SIZE)
    limits = "<iotune><total_bytes_sec>1000000000</total_bytes_sec></iotune>"
    formats = {
        fmt: file_row(bench.image(f"i.{fmt}", fmt, "force_size=on" if fmt == "vpc" else ""), fmt, held=zeroes)
        for fmt in ("vdi", "vmdk", "vpc", "qed", "qcow")
    }
    return {
        "LUKS": file_row(bench.luks("luks"), inner=bench.encryption, shut_off=False),
        "LUKS, older place": file_row(bench.luks("luks2"), more=bench.encryption, shut_off=False),
        "LUKS in qcow2": luks_in_qcow2(bench),
        "slice": file_row(bench.raw("slice"), inner=slices, shut_off=False, held=bench.base[MIB : 3 * MIB]),
        "NBD without a name": network_row(
            f"<source protocol='nbd'>{unix.format(bench.served('x', '-x', ''))}</source>", held=bench.base
        ),
        "NBD with a name": network_row(
            f"<source protocol='nbd' name='n'>{unix.format(bench.served('n', '-x', 'n'))}</source>", held=bench.base
        ),
        "volume": Row(
            "<disk type='volume'><driver name='qemu' type='qcow2'/>"
            f"<source pool='{bench.pool()}' volume='v.qcow2'/><target dev='TARGET' bus='virtio'/></disk>",
            mode="full",
            shut_off=False,
            held=zeroes,
        ),
        "data file": file_row(
            bench.image("data.qcow2", "qcow2", f"data_file={bench.folder}/data.qcow2.raw,data_file_raw=on"),
            "qcow2",
            mode="full",
            held=zeroes,
        ),
        "shareable": file_row(bench.raw("shared"), more="<shareable/>", held=bench.base),
        "label": file_row(bench.raw("label"), inner="<seclabel model='dac' relabel='no'/>", held=bench.base),
        "limits": file_row(bench.raw("limits"), more=limits, held=bench.base),
        "read-only": file_row(bench.raw("fixed"), more="<readonly/>", held=bench.base, writable=False),
        **formats,
    }


def left_out(bench: Bench) -> dict[str, str]:
    """Disks that no backup job includes."""
    folder = bench.folder / "folder"
    folder.mkdir()
    (folder / "file").write_text("text")
    fat = "<driver name='qemu' type='fat'/>"
    return {
        "folder": f"<disk type='dir'>{fat}<source dir='{folder}'/><target dev='TARGET' bus='virtio'/><readonly/></disk>",
        "ploop": file_row(bench.image("i.ploop", "parallels"), "ploop").xml,
        "transient": file_row(bench.raw("transient"), more="<transient/>").xml,
        "missing": file_row(bench.folder / "nowhere").xml.replace("<source ", "<source startupPolicy='optional' "),
    }


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


def test_every_kind_of_disk_is_read_as_the_guest_sees_it(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, bench: Bench
) -> None:
    rows = table(bench)
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        by_target = dict(zip(attach(domain, (row.xml for row in rows.values())), rows.values()))
        refused = {target for target, row in by_target.items() if not row.shut_off}
        session = session_of(domain)
        domain.start()
        held = {}
        for seed, (target, row) in enumerate(by_target.items()):
            content = bytearray(row.held or bench.base)
            if row.held is None:
                domain.write_bytes(target, 0, bench.base)
            if row.writable:
                content[AT : AT + 65536] = domain.write_random(target, AT, 65536, seed)
            held[target] = bytes(content)

        first = backup(session, repository, ask(domain.name))
        assert {disk.target: disk.mode for disk in first.disks if disk.target != "vda"} == {
            target: row.mode for target, row in by_target.items()
        }
        assert sum("plain text" in each for each in first.warnings) == 3
        assert sum("another domain" in each for each in first.warnings) == 1
        got = restored(repository, first, workspace / "first")
        assert [name for name, target in zip(rows, by_target) if got[target] != held[target]] == []

        for target in refused:
            held[target] = held[target][:512] + domain.write_random(target, 512, 512, 99) + held[target][1024:]
        domain.destroy()
        for target in sorted(refused):
            for check in (True, False):
                with pytest.raises(Refused, match=f"{target} .*Set offline to start_paused"):
                    backup(session, repository, ask(domain.name, selection=_only(target, "vda")), check_only=check)
        with pytest.raises(Refused, match="start_paused"):
            backup(session, repository, ask(domain.name))
        readable = backup(session, repository, ask(domain.name, selection=_only("vda", *(by_target.keys() - refused))))
        got = restored(repository, readable, workspace / "second")
        assert got.keys() == {"vda", *by_target} - refused
        assert [target for target, data in got.items() if target != "vda" and data != held[target]] == []

        third = backup(session, repository, ask(domain.name, start_paused=True))
        assert not domain.running
        got = restored(repository, third, workspace / "third")
        assert [name for name, target in zip(rows, by_target) if got[target] != held[target]] == []
        modes = {disk.target: disk.mode for disk in third.disks}
        tracked = [target for target, row in by_target.items() if row.mode == "full"]
        assert {modes[target] for target in tracked} == {"incremental"}

        # A converted image would be no image of the definition.
        found = convert_disks(session, domain.name, None, ConversionOptions(), check_only=True)
        assert not {image.target for image in found.images} & refused


def _only(*targets: str) -> t.Any:
    from _cbt.hypervisor.domain_xml.disks import Selection

    return Selection(targets)


def test_disks_that_no_job_includes_are_left_out_with_a_warning(
    hypervisor: Hypervisor, repository: Repository, bench: Bench
) -> None:
    rows = left_out(bench)
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        targets = attach(domain, rows.values())
        domain.start()
        session = session_of(domain)
        estimate = backup(session, repository, ask(domain.name), check_only=True)
        done = backup(session, repository, ask(domain.name))
        assert [disk.target for disk in done.disks if disk.mode != "skipped"] == ["vda"]
        for target in targets:
            assert sum(each.startswith(f"{target} ") for each in done.warnings) == 1, (target, done.warnings)
        assert estimate.warnings == done.warnings


def test_a_vhost_user_disk_does_not_keep_the_others_from_the_backup(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, bench: Bench
) -> None:
    socket, ready = workspace / "v.sock", workspace / "v.pid"
    blockdev = f"driver=file,node-name=f,filename={bench.raw('v')}"
    export = f"type=vhost-user-blk,id=e,addr.type=unix,addr.path={socket},node-name=f,writable=on"
    daemon = ("qemu-storage-daemon", "--pidfile", ready, "--blockdev", blockdev, "--export", export)
    with running(ready, *daemon), BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        socket.chmod(0o777)
        memory = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><vcpu"
        hypervisor.connection.defineXML(domain.xml(inactive=True).replace("<vcpu", memory, 1))
        source = f"<source type='unix' path='{socket}'/><target dev='TARGET' bus='virtio'/>"
        attach(domain, [f"<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>{source}</disk>"])
        domain.start()
        domain.write("vda", 0, 65536, 7)
        for _attempt in ("running", "shut off"):
            done = backup(session_of(domain), repository, ask(domain.name))
            assert [disk.mode for disk in done.disks][1:] == ["skipped"]
            assert [each for each in done.warnings if "does not see its data" in each] != []
            if domain.running:
                domain.destroy()


def _overlays(folder: Path, count: int) -> Path:
    """The top of a chain of qcow2 images over a RAW one."""
    below, fmt = folder / "0", "raw"
    for number in range(1, count + 1):
        image = folder / str(number)
        run_tool(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", fmt, image, str(MIB)])
        image.chmod(0o666)
        below, fmt = image, "qcow2"
    return below


def test_the_longest_chain_is_read_and_a_longer_one_is_refused_by_name(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    chain = workspace / "chain"
    chain.mkdir()
    base = random.Random(2).randbytes(MIB)
    (chain / "0").write_bytes(base)
    (chain / "0").chmod(0o666)
    top = _overlays(chain, 199)
    with BlockDomain(hypervisor, [DiskSpec("vda", source=top)]) as domain:
        session = session_of(domain)
        written = domain.write_random("vda", 4096, 4096, 3)
        held = base[:4096] + written + base[8192:]
        live = backup(session, repository, ask(domain.name))
        domain.destroy()
        rest = backup(session, repository, ask(domain.name))
        assert [disk.mode for each in (live, rest) for disk in each.disks] == ["full", "incremental"]
        for number, each in enumerate((live, rest)):
            assert restored(repository, each, workspace / f"out-{number}") == {"vda": held}
    more = chain / "more"
    run_tool(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", top, "-F", "qcow2", more, str(MIB)])
    with (
        BlockDomain(hypervisor, [DiskSpec("vda", source=more)], start=False) as domain,
        pytest.raises(Refused, match=f"{more}: it has more than 200 .*virsh blockcommit"),
    ):
        backup(session_of(domain), repository, ask(domain.name))


def _with_backing(domain: BlockDomain, xml: str) -> None:
    """Have the definition of vda name its backing chain."""
    definition = domain.xml(inactive=True)
    domain.hypervisor.connection.defineXML(definition.replace("<target dev='vda'", f"{xml}<target dev='vda'", 1))


@pytest.mark.parametrize("same", [True, False], ids=["that of the image", "another"])
def test_a_backing_chain_in_the_definition_is_what_the_guest_sees(
    same: bool, hypervisor: Hypervisor, workspace: Path, repository: Repository, bench: Bench
) -> None:
    bases = [bench.raw("b0", b"a" * MIB), bench.raw("b1", b"b" * MIB)]
    top = workspace / "top.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-b", bases[0], "-F", "raw", top, str(MIB)])
    top.chmod(0o666)
    named = bases[0 if same else 1]
    with BlockDomain(hypervisor, [DiskSpec("vda", source=top)], start=False) as domain:
        chain = f"<backingStore type='file'><format type='raw'/><source file='{named}'/><backingStore/></backingStore>"
        _with_backing(domain, chain)
        session = session_of(domain)
        domain.start()
        live = backup(session, repository, ask(domain.name))
        domain.destroy()
        held = (b"a" if same else b"b") * MIB
        assert restored(repository, live, workspace / "live") == {"vda": held}
        if same:
            rest = backup(session, repository, ask(domain.name))
            assert restored(repository, rest, workspace / "rest") == {"vda": held}
        else:
            with pytest.raises(Refused, match="another backing chain in its definition.* start_paused"):
                backup(session, repository, ask(domain.name))


@pytest.fixture
def small(workspace: Path) -> t.Iterator[Path]:
    """A file system of 4 MiB."""
    folder = workspace / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "small", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("before", [False, True], ids=["first backup", "with a history"])
def test_a_shut_off_domain_whose_image_store_is_full_is_read_in_full_with_a_warning(
    before: bool, hypervisor: Hypervisor, workspace: Path, repository: Repository, small: Path
) -> None:
    image = small / "disk.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", image, str(64 * MIB)])
    image.chmod(0o666)
    with BlockDomain(hypervisor, [DiskSpec("vda", source=image), DiskSpec("vdb", MIB)], start=False) as domain:
        session = session_of(domain)
        if before:
            backup(session, repository, ask(domain.name))
        data = random.Random(4).randbytes(MIB)
        (workspace / "data").write_bytes(data)
        run_tool(["qemu-io", "-f", "qcow2", "-c", f"write -s {workspace}/data 0 {MIB}", image])
        with (small / "fill").open("wb", buffering=0) as fill, contextlib.suppress(OSError):
            while True:
                fill.write(bytes(4096))
        done = backup(session, repository, ask(domain.name))
        assert [disk.mode for disk in done.disks] == ["full", "incremental" if before else "full"]
        assert [each for each in done.warnings if each.startswith("Read in full: its changes cannot be tracked")] != []
        got = restored(repository, done, workspace / "full")
        assert got["vda"][:MIB] == data and not any(got["vda"][MIB:])

        (small / "fill").unlink()
        again = backup(session, repository, ask(domain.name))
        assert [disk.mode for disk in again.disks] == ["full", "incremental"] and "Read in full" in again.disks[
            0
        ].reason
        last = backup(session, repository, ask(domain.name))
        assert [disk.mode for disk in last.disks] == ["incremental", "incremental"]


def test_bitmaps_of_an_encrypted_image_are_removed_while_the_domain_runs(
    hypervisor: Hypervisor, repository: Repository, bench: Bench
) -> None:
    """Without the key, QEMU does not write to the image."""
    from _cbt.hypervisor import checkpoints

    row = luks_in_qcow2(bench)
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        attach(domain, [row.xml])
        domain.start()
        made = backup(session_of(domain), repository, ask(domain.name))
        assert made.point is not None and made.point.checkpoint is not None
        domain.destroy()
        one = session_of(domain).domain(domain.name)
        with pytest.raises(HypervisorError, match="Start the domain, paused if necessary"):
            checkpoints.remove(one, made.point.checkpoint)
        domain.start()
        checkpoints.remove(one, made.point.checkpoint)
        assert domain.bitmaps("vdb") == []
