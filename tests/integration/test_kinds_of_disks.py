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
from kinds import MIB, SIZE, Bench, Row, attach, file_row, luks_in_qcow2, network_row, restored
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from lab.qemu_nbd import running
from witness import ask, session_of, witnessed_backup

from _cbt.errors import HypervisorError, Refused
from _cbt.hypervisor.backup_job import backup_job
from _cbt.hypervisor.domain import read_domain
from _cbt.operations.backup.backup import backup
from _cbt.operations.convert.convert import convert_disks
from _cbt.operations.convert.plan import ConversionOptions
from _cbt.repository.repository import Repository

BUSES = {"vdb": "virtio", "sda": "scsi"}
AT = MIB + 12345 // 512 * 512


def table(bench: Bench) -> dict[str, Row]:
    slices = f"<slices><slice type='storage' offset='{MIB}' size='{2 * MIB}'/></slices>"
    unix = "<host transport='unix' socket='{}'/>"
    zeroes = bytes(SIZE)
    source = f"<source pool='{bench.pool()}' volume='{{}}'/>"
    volume = f"<disk type='volume'><driver name='qemu' {{}}/>{source}<target dev='TARGET' bus='virtio'/></disk>"
    limits = "<iotune><total_bytes_sec>1000000000</total_bytes_sec></iotune>"
    policy = file_row(bench.raw("policy"), held=bench.base)
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
        "volume": Row(volume.format("type='qcow2'", "v.qcow2"), mode="full", held=zeroes),
        "volume without a format": Row(volume.format("", "v.raw"), held=zeroes),
        "device": Row(
            f"<disk type='block'><driver name='qemu' type='raw'/><source dev='{bench.device('device')}'/>"
            "<target dev='TARGET' bus='virtio'/></disk>",
            held=bench.base,
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
        "startup policy": policy._replace(xml=policy.xml.replace("<source ", "<source startupPolicy='optional' ")),
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

        witnessed = witnessed_backup(domain, repository, workspace)
        first = witnessed.result
        assert {disk.target: disk.mode for disk in first.disks if disk.target != "vda"} == {
            target: row.mode for target, row in by_target.items()
        }
        assert sum("plain text" in each for each in first.warnings) == 3
        assert sum("other domains" in each for each in first.warnings) == 1
        got = restored(repository, first, workspace / "first")
        assert [name for name, target in zip(rows, by_target) if got[target] != held[target]] == []
        assert [target for target, copy in witnessed.copies.items() if got[target] != copy.read_bytes()] == []

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
        for target in sorted(refused):
            with pytest.raises(Refused, match=f"Cannot convert the disks of {domain.name}: {target} is "):
                convert_disks(session, domain.name, [target], ConversionOptions(), check_only=True)


def _only(*targets: str) -> t.Any:
    from _cbt.hypervisor.domain_xml.disks import Selection

    return Selection(targets)


def test_a_disk_in_a_thread_does_not_crash_qemu(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, bench: Bench
) -> None:
    """A version of QEMU that could crash does not read it while the domain runs."""
    virtio, scsi = file_row(bench.raw("virtio"), mode="scan").xml, file_row(bench.raw("scsi"), mode="scan").xml
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        config = libvirt.VIR_DOMAIN_AFFECT_CONFIG
        domain.handle.addIOThread(1, config)
        domain.handle.attachDeviceFlags(
            "<controller type='scsi' index='0' model='virtio-scsi'><driver iothread='1'/></controller>", config
        )
        for xml, target in ((virtio.replace("type='raw'", "type='raw' iothread='1'"), "vdb"), (scsi, "sda")):
            named = xml.replace("TARGET", target).replace("bus='virtio'", f"bus='{BUSES[target]}'")
            domain.handle.attachDeviceFlags(named, config)
        domain.start()
        qemu = domain.qmp("query-version")["qemu"]
        safe = (qemu["major"], qemu["minor"], qemu["micro"]) >= (8, 2, 3)
        session = session_of(domain)
        live = backup(session, repository, ask(domain.name))
        assert domain.running
        assert [disk.mode for disk in live.disks] == ["full", *["scan" if safe else "skipped"] * 2]
        assert sum("I/O thread" in each for each in live.warnings) == (0 if safe else 2)
        if not safe:
            facts, job = read_domain(session.domain(domain.name)), contextlib.ExitStack()
            with job, pytest.raises(Refused, match="sda is in an I/O thread"):
                job.enter_context(backup_job(session.domain(domain.name), facts, {"sda": None}, str(workspace)))
        domain.destroy()
        rest = backup(session, repository, ask(domain.name))
        got = restored(repository, rest, workspace / "rest")
        assert got["vdb"] == got["sda"] == bench.base


def test_a_volume_whose_pool_is_stopped_is_refused_by_name(
    hypervisor: Hypervisor, repository: Repository, bench: Bench
) -> None:
    pool = bench.pool()
    source = f"<source pool='{pool}' volume='v.qcow2'/><target dev='TARGET' bus='virtio'/>"
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        attach(domain, [f"<disk type='volume'><driver name='qemu' type='qcow2'/>{source}</disk>"])
        session = session_of(domain)
        stopped = hypervisor.connection.storagePoolLookupByName(pool)
        stopped.destroy()
        for check in (True, False):
            with pytest.raises(Refused, match=f"vdb is the volume {pool}/v.qcow2.* virsh pool-start"):
                backup(session, repository, ask(domain.name), check_only=check)
        stopped.create()
        done = backup(session, repository, ask(domain.name))
        assert [disk.mode for disk in done.disks] == ["full", "full"]


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
            with pytest.raises(Refused, match="different backing chain in its definition.* start_paused"):
                backup(session, repository, ask(domain.name))


@pytest.mark.parametrize("layer", ["LUKS", "slice"])
def test_a_layer_of_a_backing_file_is_read_as_the_guest_sees_it(
    layer: str, hypervisor: Hypervisor, workspace: Path, repository: Repository, bench: Bench
) -> None:
    slices = f"<slices><slice type='storage' offset='{MIB}' size='{2 * MIB}'/></slices>"
    base, inner, held = {
        "LUKS": (bench.filled_luks, bench.encryption, bench.base),
        "slice": (bench.raw, slices, bench.base[MIB : 3 * MIB]),
    }[layer]
    below, top = base("below"), workspace / "top.qcow2"
    run_tool(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "raw", top, str(len(held))])
    top.chmod(0o666)
    with BlockDomain(hypervisor, [DiskSpec("vda", source=top)], start=False) as domain:
        source = f"<source file='{below}'>{inner}</source>"
        _with_backing(domain, f"<backingStore type='file'><format type='raw'/>{source}<backingStore/></backingStore>")
        session = session_of(domain)
        domain.start()
        live = backup(session, repository, ask(domain.name))
        assert restored(repository, live, workspace / "live") == {"vda": held}
        domain.destroy()
        for check in (True, False):
            with pytest.raises(Refused, match="vda is .*Set offline to start_paused"):
                backup(session, repository, ask(domain.name), check_only=check)
        paused = backup(session, repository, ask(domain.name, start_paused=True))
        assert [disk.mode for each in (live, paused) for disk in each.disks] == ["full", "incremental"]
        assert restored(repository, paused, workspace / "paused") == {"vda": held}


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
