# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that cannot be tracked become qcow2 v3, under a running guest, in a window and at rest."""

from __future__ import annotations

import json
import signal
import time
import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.guest import LinuxGuest
from lab.hypervisor import Hypervisor
from lab.process import run_tool, wait_until
from module_process import ModuleProcess, created, run_module

from _cbt.images.image_files import describe

MIB = 1 << 20
V2 = DiskSpec("vda", 256 * MIB, compat="0.10")


def _compat(path: str | Path) -> str | None:
    return t.cast(
        "str | None",
        json.loads(run_tool(["qemu-img", "info", "-U", "--output=json", path]))["format-specific"]["data"].get(
            "compat"
        ),
    )


def _defined(domain: t.Any, target: str = "vda") -> str:
    return domain.xml(inactive=True).split("<source file='")[1].split("'")[0]


@pytest.mark.parametrize("disk", [V2, DiskSpec("vda", 256 * MIB, format="raw")], ids=["qcow2 v2", "raw"])
def test_a_writing_guest_is_converted_without_a_stop_and_loses_nothing(
    disk: DiskSpec, hypervisor: Hypervisor, workspace: Path
) -> None:
    with LinuxGuest(hypervisor, [disk]) as guest:
        guest.wait_ready()
        before = guest.write_random_file("/data/before", 24 * MIB)
        guest.sync()
        loop = (
            "i=0; while true; do i=$((i+1)); echo $i > /data/n$i; sync; cut -d' ' -f1 /proc/uptime >> /tmp/ticks; done"
        )
        guest.check(f"({loop}) >/dev/null 2>&1 &")
        original, pid = guest.image("vda"), guest.qemu_pid
        arguments = {"domain": guest.name}
        predicted = run_module(workspace, "cbt_image", check=True, **arguments)
        assert predicted["changed"] and guest.image("vda") == original
        done = run_module(workspace, "cbt_image", **arguments)
        assert not done.get("failed"), done
        assert done["actions"] == predicted["actions"]
        assert [(image["method"], image["original"]) for image in done["images"]] == [("blockcopy", None)]
        new = Path(done["images"][0]["path"])
        assert (guest.qemu_pid, guest.image("vda"), _defined(guest)) == (pid, new, str(new))
        assert not original.exists() and _compat(new) == "1.1"
        assert [path.name for path in new.parent.iterdir() if "cbt" in path.name] == []
        assert guest.checkpoints() == [] and guest.bitmaps("vda") == []
        written = int(guest.check("ls /data | grep -c '^n'"))
        wait_until(lambda: int(guest.check("ls /data | grep -c '^n'")) > written, 30, "further writes of the guest")
        assert not run_module(workspace, "cbt_image", **arguments)["changed"]
        first = run_module(
            workspace, "cbt_backup", repository=created(workspace, workspace / "repository"), **arguments
        )
        guest.write_random_file("/data/after", MIB)
        second = run_module(
            workspace, "cbt_backup", repository=str(workspace / "repository"), mode="incremental", **arguments
        )
        assert [first["disks"][0]["mode"], second["disks"][0]["mode"]] == ["full", "incremental"]
        guest.check(
            "for n in $(seq $(ls /data | grep -c '^n')); do [ $(cat /data/n$n) = $n ] || [ $n -ge $(($(ls /data | grep -c '^n')-1)) ]; done"
        )
        assert guest.sha256("/data/before") == before
        guest.destroy()
        run_tool(["qemu-img", "check", new])
        guest.start()
        guest.wait_ready()
        assert guest.sha256("/data/before") == before


def test_the_comparison_finds_a_difference_and_keeps_the_original(
    hypervisor: Hypervisor, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from witness import session_of

    from _cbt.errors import CbtError
    from _cbt.hypervisor import block_copy
    from _cbt.operations.convert.convert import convert_disks
    from _cbt.operations.convert.plan import ConversionOptions

    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB, format="raw")]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 1)
        original = domain.image("vda")

        def pivot_and_damage(handle: t.Any, target: str) -> None:
            pivot(handle, target)
            with original.open("r+b") as file:  # what the guest did not write differs from now on
                file.seek(2 * MIB + 17)
                file.write(b"other")

        pivot = block_copy.pivot
        monkeypatch.setattr(block_copy, "pivot", pivot_and_damage)
        with pytest.raises(CbtError, match="differs from"):
            convert_disks(session_of(domain), domain.name, None, ConversionOptions())
        assert original.exists() and domain.running and not domain.job_running()


def test_a_copy_that_fails_leaves_the_guest_with_its_original(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 512 * MIB, compat="0.10")]) as domain:
        for part in range(4):
            domain.write_random("vda", part * 112 * MIB, 112 * MIB, part)
        original = domain.image("vda")
        for number in (signal.SIGTERM, signal.SIGKILL):
            process = ModuleProcess(workspace, "cbt_image", {"domain": domain.name})
            wait_until(lambda: "<mirror" in domain.xml(), 30, "begin of the copy")
            domain.handle.blockJobSetSpeed("vda", MIB, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
            process.signal(number)
            result = process.result_if_any()
            if number == signal.SIGTERM:
                assert result is not None and "Ended by SIGTERM" in result["msg"], result
                assert "<mirror" not in domain.xml()
                assert sorted(path.name for path in original.parent.iterdir() if "v3" in path.name) == []
            assert (domain.image("vda"), _defined(domain)) == (original, str(original))
        assert "<mirror" in domain.xml()  # the killed run's copy goes on, and the next run goes on with it
        domain.handle.blockJobSetSpeed("vda", 0)
        done = run_module(workspace, "cbt_image", domain=domain.name)
        assert not done.get("failed"), done
        assert _compat(domain.image("vda")) == "1.1" and not original.exists()


@pytest.mark.parametrize("state", ["off", "window"])
def test_at_rest_images_are_amended_or_copied_and_the_domain_runs_on_them(
    state: str, hypervisor: Hypervisor, workspace: Path
) -> None:
    with LinuxGuest(hypervisor, [V2, DiskSpec("vdb", 256 * MIB, format="raw")]) as guest:
        guest.wait_ready()
        sums = {disk: guest.write_random_file(f"/disks/{disk}/file", 4 * MIB) for disk in ("vda", "vdb")}
        guest.sync()
        raw = guest.image("vdb")
        if state == "off":
            guest.destroy()
        done = run_module(workspace, "cbt_image", domain=guest.name, window=state == "window", shutdown_timeout=60)
        assert not done.get("failed"), done
        assert [image["method"] for image in done["images"]] == ["amend", "convert"]
        assert done["images"][1]["original"] == (str(raw) if state == "off" else None)
        assert raw.exists() == (state == "off")
        again = run_module(workspace, "cbt_image", domain=guest.name)
        assert not again["changed"], again
        if state == "off":
            guest.start()
        guest.wait_ready()
        assert {disk: guest.sha256(f"/disks/{disk}/file") for disk in sums} == sums
        assert {_compat(guest.image(disk)) for disk in sums} == {"1.1"}
        last = run_module(workspace, "cbt_image", domain=guest.name)
        assert [image["method"] for image in last["images"]] == (["finish"] if state == "off" else [])
        assert not raw.exists()


def test_a_domain_that_cannot_start_on_the_copy_goes_back_to_the_original(
    hypervisor: Hypervisor, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from witness import session_of

    from _cbt.errors import CbtError
    from _cbt.hypervisor import definition
    from _cbt.operations.convert.convert import convert_disks
    from _cbt.operations.convert.plan import ConversionOptions

    with LinuxGuest(hypervisor, [V2, DiskSpec("vdb", 64 * MIB, format="raw")]) as guest:
        guest.wait_ready()
        before = {target: guest.image(target) for target in ("vda", "vdb")}
        started: list[str] = []

        def start(handle: t.Any) -> None:
            started.append(guest.xml(inactive=True))
            if len(started) == 1:
                Path(str(before["vdb"]).replace(".raw", ".qcow2")).write_bytes(b"no image any more" * 100)
            begin(handle)

        begin = definition.start
        monkeypatch.setattr(definition, "start", start)
        with pytest.raises(CbtError, match="Cannot start"):
            convert_disks(session_of(guest), guest.name, None, ConversionOptions(window=True))
        assert len(started) == 2 and guest.running
        assert {target: guest.image(target) for target in before} == before
        assert _compat(before["vda"]) == "0.10"
        assert sorted(path.suffix for path in before["vdb"].parent.iterdir() if path.name.startswith("vdb")) == [".raw"]
        guest.wait_ready()


def test_backing_files_are_neither_changed_nor_left_without_their_images(
    hypervisor: Hypervisor, workspace: Path
) -> None:
    base = workspace / "base.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", base, "16M"])
    run_tool(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", base])
    for name in ("one", "two"):
        overlay = workspace / f"{name}.qcow2"
        run_tool(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "base.qcow2", "-F", "qcow2", overlay]
        )
        overlay.chmod(0o644)
    base.chmod(0o644)
    held = base.read_bytes()
    with BlockDomain(
        hypervisor, [DiskSpec("vda", source=workspace / "one.qcow2"), DiskSpec("vdb", source=workspace / "two.qcow2")]
    ) as domain:
        domain.write("vda", MIB, MIB, 9)
        done = run_module(workspace, "cbt_image", domain=domain.name)
        assert not done.get("failed"), done
        assert [image["method"] for image in done["images"]] == ["blockcopy", "blockcopy"]
        domain.destroy()
        assert base.read_bytes() == held
        for name in ("one", "two"):
            assert describe(str(workspace / f"{name}-v3.qcow2"), "qcow2").backing == "base.qcow2"
        run_tool(
            [
                "qemu-io",
                "-f",
                "qcow2",
                "-r",
                "-c",
                "read -P 7 0 1M",
                "-c",
                "read -P 9 1M 1M",
                "-c",
                "read -P 7 2M 2M",
                workspace / "one-v3.qcow2",
            ]
        )


def test_an_original_on_which_others_rest_is_kept(hypervisor: Hypervisor, workspace: Path) -> None:
    template = workspace / "template.raw"
    run_tool(["qemu-img", "create", "-q", "-f", "raw", template, "8M"])
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "template.raw", "-F", "raw", workspace / "clone.qcow2"])
    template.chmod(0o644)
    with BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=template)]) as domain:
        done = run_module(workspace, "cbt_image", domain=domain.name)
        assert not done.get("failed"), done
        assert done["images"][0]["original"] == str(template) and template.exists()
        assert "clone.qcow2" in str(done["warnings"])


def test_an_unsafe_conversion_is_refused_and_changes_nothing(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, format="raw")]) as domain:
        taken = domain.image("vda").with_suffix(".qcow2")
        taken.write_bytes(b"somebody else's")
        refused = {
            "exists already": {},
            "the domain is running": {"method": "convert"},
            "amend is for qcow2": {"method": "amend", "window": True},
            "has no disk vdx": {"disk": "vdx"},
            "there is no folder": {"dest": "/no/such/folder/x.qcow2"},
            "did not shut down": {"window": True, "shutdown_timeout": 1, "dest": str(workspace / "x.qcow2")},
        }
        for message, options in refused.items():
            result = run_module(workspace, "cbt_image", domain=domain.name, **options)
            assert result.get("failed") and message in result["msg"], (message, result)
        assert taken.read_bytes() == b"somebody else's" and domain.running
        small = workspace / "small"
        small.mkdir()
        run_tool(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", small])
        try:
            domain.write_random("vda", 0, 4 * MIB, 1)
            result = run_module(workspace, "cbt_image", domain=domain.name, dest=str(small / "x.qcow2"))
            assert result.get("failed") and "are needed beside the original" in result["msg"], result
        finally:
            run_tool(["umount", small])


def test_an_image_by_itself_is_converted_and_the_original_stays(hypervisor: Hypervisor, workspace: Path) -> None:
    raw, old = workspace / "disk one.raw", workspace / "old.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "raw", raw, "8M"])
    run_tool(["qemu-io", "-f", "raw", "-c", "write -P 5 1M 1M", raw])
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, "8M"])
    for path, method, fmt in ((raw, "convert", "raw"), (old, "amend", "qcow2")):
        assert run_module(workspace, "cbt_image", check=True, path=str(path), source_format=fmt)["changed"]
        assert _compat(old) == "0.10" and not (workspace / "disk one.qcow2").exists() or path == old
        done = run_module(workspace, "cbt_image", path=str(path), source_format=fmt)
        assert not done.get("failed") and done["images"][0]["method"] == method, done
        assert not run_module(workspace, "cbt_image", path=str(path), source_format=fmt)["changed"]
    assert _compat(old) == "1.1" and _compat(workspace / "disk one.qcow2") == "1.1"
    run_tool(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, workspace / "disk one.qcow2"])
    with raw.open("r+b") as file:
        file.write(b"changed since")
    different = run_module(workspace, "cbt_image", path=str(raw), source_format="raw")
    assert different.get("failed") and "exists already" in different["msg"]
    assert sorted(path.name for path in workspace.iterdir() if "cbt" in path.name) == []


def test_every_run_of_a_conversion_that_is_killed_is_taken_up(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 64 * MIB, format="raw")], start=False) as domain:
        raw = domain.image("vda")
        run_tool(["qemu-io", "-f", "raw", "-c", "write -P 3 0 48M", raw])
        for delay in (0.3, 0.45, 0.6, 0.8):
            process = ModuleProcess(workspace, "cbt_image", {"domain": domain.name})
            time.sleep(delay)
            process.signal(signal.SIGKILL)
            process.result_if_any()
            wanted = "qcow2" if domain.image("vda").suffix == ".qcow2" else "raw"
            run_tool(["qemu-img", "info", "-f", wanted, domain.image("vda")])
        done = run_module(workspace, "cbt_image", domain=domain.name)
        assert not done.get("failed"), done
        assert raw.exists() and _compat(domain.image("vda")) == "1.1"
        run_tool(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, domain.image("vda")])
