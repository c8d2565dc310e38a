# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""External snapshots taken, committed and reverted between two backups: nothing wrong is ever published."""

from __future__ import annotations

import functools
import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.process import run_tool, wait_until
from trial import Trial, begun

ELSEWHERE = "vd[ab] was .* at restore point .* and is .* now"


def _ready(handle: libvirt.virDomain, target: str) -> bool:
    """Whether an active commit has caught up."""
    job = handle.blockJobInfo(target)
    return bool(job["cur"] == job["end"] and "ready='yes'" in handle.XMLDesc(0))


@pytest.fixture
def trial(hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Trial]:
    """A trial after its first backup and some writes."""
    with begun(hypervisor, workspace) as made:
        yield made


def _snapshot(trial: Trial) -> dict[str, Path]:
    """Take an external snapshot; returns the base images by target."""
    bases = {target: trial.domain.image(target) for target in trial.targets}
    disks = "".join(
        f"<disk name='{target}' snapshot='external'><source file='{image}.overlay'/></disk>"
        for target, image in bases.items()
    )
    flags = (
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    )
    trial.domain.handle.snapshotCreateXML(f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>", flags)
    return bases


def _committed(trial: Trial, bases: t.Mapping[str, Path]) -> None:
    """Commit the overlays into their bases and go on with these, as ``virsh blockcommit --active --pivot``."""
    for target, base in bases.items():
        handle = trial.domain.handle
        handle.blockCommit(target, str(base), None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        wait_until(functools.partial(_ready, handle, target), 30, f"commit of {target}")
        handle.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        assert trial.domain.image(target) == base


def _reverted(trial: Trial, bases: t.Mapping[str, Path]) -> None:
    """Go on from the bases, which are as they were when the snapshot was taken, and drop the overlays."""
    overlays = {target: trial.domain.image(target) for target in bases}
    trial.domain.destroy()
    for target, base in bases.items():
        trial.use(target, base)
        overlays[target].unlink()
    trial.domain.start()


def test_snapshot_taken_then_committed_with_a_backup_between_and_after(trial: Trial) -> None:
    bases = _snapshot(trial)
    trial.write()
    trial.survives("full", ELSEWHERE)
    trial.write()
    _committed(trial, bases)
    trial.write()
    trial.survives("full", ELSEWHERE)


def test_snapshot_taken_and_committed_without_a_backup_between(trial: Trial) -> None:
    bases = _snapshot(trial)
    trial.write()
    _committed(trial, bases)
    trial.write()
    trial.survives("incremental")


def test_snapshot_taken_and_committed_by_qemu_img_while_shut_off(trial: Trial) -> None:
    bases = _snapshot(trial)
    trial.write()
    overlays = {target: trial.domain.image(target) for target in bases}
    trial.domain.destroy()
    for target, base in bases.items():
        run_tool(["qemu-img", "commit", "-q", overlays[target]])
        trial.use(target, base)
    trial.domain.start()
    trial.write()
    trial.survives("incremental")


def test_snapshot_taken_and_reverted_by_hand(trial: Trial) -> None:
    bases = _snapshot(trial)
    trial.write()
    _reverted(trial, bases)
    trial.write()
    trial.survives("incremental")


def test_snapshot_taken_and_reverted_by_hand_after_a_backup_of_what_was_dropped(trial: Trial) -> None:
    bases = _snapshot(trial)
    trial.write()
    assert {disk.mode for disk in trial.backup().result.disks} == {"full"}
    trial.write()
    _reverted(trial, bases)
    trial.write()
    # The first point's bitmap went with the backup after it, in the bases too.
    trial.survives("full", "is missing from vd[ab]")


def test_internal_snapshot_of_an_image_with_a_bitmap_cannot_be_reverted(trial: Trial) -> None:
    trial.domain.destroy()
    image = trial.domain.image("vda")
    run_tool(["qemu-img", "snapshot", "-c", "before", image])
    trial.domain.start()
    trial.write()
    trial.domain.destroy()
    # A bitmap would know nothing of it: QEMU refuses.
    with pytest.raises(LabError):
        run_tool(["qemu-img", "snapshot", "-a", "before", image])
    trial.survives("incremental")
