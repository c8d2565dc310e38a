# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accidents to QEMU, libvirt, checkpoints and the repository between two backups: nothing wrong is ever published."""

from __future__ import annotations

import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from trial import Trial, begun

from _cbt.repository.creation import open_or_create
from _cbt.repository.format import names

THEIRS = "<domaincheckpoint><name>{}</name></domaincheckpoint>"


@pytest.fixture
def trial(hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Trial]:
    """A trial after its first backup and some writes."""
    with begun(hypervisor, workspace) as made:
        yield made


# QEMU and the domain.


def test_qemu_killed_before_the_bitmaps_ever_reached_the_images(trial: Trial) -> None:
    trial.domain.kill()
    trial.domain.start()
    trial.write()
    trial.survives("full", "is missing from vd[ab]")


def test_qemu_killed_after_the_bitmaps_were_loaded_from_the_images(trial: Trial) -> None:
    trial.off_and_on(lambda: None)
    trial.write()
    trial.domain.kill()
    trial.domain.start()
    trial.write()
    taken = trial.survives("full", "was not saved properly")
    # It costs reading, not storage.
    assert all(disk.statistics is not None and disk.statistics.unchanged_bytes > 0 for disk in taken.result.disks)


def test_qemu_killed_and_backed_up_while_shut_off(trial: Trial) -> None:
    trial.off_and_on(lambda: None)
    trial.write()
    trial.domain.kill()
    trial.survives("full", "was not saved properly")


def test_domain_destroyed_and_started(trial: Trial) -> None:
    trial.off_and_on(lambda: None)
    trial.write()
    trial.survives("incremental")


def test_domain_switched_off_by_its_guest_and_started(trial: Trial) -> None:
    trial.domain.shutdown_hard()
    trial.domain.start()
    trial.write()
    trial.survives("incremental")


def test_domain_shut_off_backed_up_there_and_started(trial: Trial) -> None:
    trial.domain.shutdown_hard()
    trial.survives("incremental")
    trial.domain.start()
    trial.write()
    trial.survives("incremental")


def test_domain_saved_to_disk_and_brought_back(trial: Trial) -> None:
    trial.domain.handle.managedSave()
    trial.domain.start()
    trial.write()
    trial.survives("incremental")


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_domain_undefined_and_defined_again(running: bool, trial: Trial) -> None:
    if running:
        trial.redefine()  # libvirt keeps the metadata of one that runs on
    else:
        trial.off_and_on(trial.redefine)
        assert trial.domain.checkpoints() == []
    trial.write()
    trial.survives("incremental")


# Checkpoints and bitmaps.


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_checkpoint_metadata_removed_by_hand(running: bool, trial: Trial) -> None:
    def remove() -> None:
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
        trial.domain.handle.checkpointLookupByName(trial.checkpoint).delete(flags)

    if running:
        remove()
    else:
        trial.off_and_on(remove)
    trial.write()
    trial.survives("incremental")


def test_checkpoint_removed_by_hand(trial: Trial) -> None:
    trial.domain.handle.checkpointLookupByName(trial.checkpoint).delete(0)
    trial.survives("full", "is missing from vd[ab]")


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
@pytest.mark.parametrize(
    ("ending", "reason"), [("", "is missing from vda"), ("@vda", "lacks the mark")], ids=["bitmap", "mark"]
)
def test_bitmap_or_mark_of_one_disk_removed_by_hand(ending: str, reason: str, running: bool, trial: Trial) -> None:
    name = f"{trial.checkpoint}{ending}"
    if running:
        node = next(
            each["node-name"]
            for each in trial.domain.qmp("query-named-block-nodes")
            if each["file"] == str(trial.domain.image("vda")) and each["drv"] == "qcow2"
        )
        trial.domain.qmp("block-dirty-bitmap-remove", node=node, name=name)
    else:
        trial.off_and_on(lambda: run_tool(["qemu-img", "bitmap", "--remove", trial.domain.image("vda"), name]))
    trial.write()
    trial.survives({"vda": "full", "vdb": "incremental"}, reason)


def test_checkpoint_of_another_tool_made_between_ours(trial: Trial) -> None:
    trial.domain.handle.checkpointCreateXML(THEIRS.format("theirs"), 0)
    trial.write()
    trial.survives("incremental")
    assert "theirs" in trial.domain.checkpoints()
    # And removed between ours, which are younger and older than it.
    trial.write()
    trial.domain.handle.checkpointLookupByName("theirs").delete(0)
    trial.write()
    trial.survives("incremental")


def test_checkpoints_of_another_tool_made_and_removed_between_two_of_ours(trial: Trial) -> None:
    for name in ("theirs-1", "theirs-2"):
        trial.domain.handle.checkpointCreateXML(THEIRS.format(name), 0)
        trial.write()
    trial.domain.handle.checkpointLookupByName("theirs-1").delete(0)
    trial.survives("incremental")


# The repository.


def test_twelve_points_each_restores_to_what_it_had(trial: Trial) -> None:
    for _number in range(10):
        assert {disk.mode for disk in trial.backup().result.disks} == {"incremental"}
        trial.write()
    trial.in_order(trial.backup())
    assert len(trial.taken) == 12


def test_two_repositories_used_in_turn(trial: Trial) -> None:
    other = open_or_create(str(trial.workspace / "other"))
    assert other is not None
    assert {disk.mode for disk in trial.backup(other).result.disks} == {"full"}
    for _round in range(3):
        for repository in (trial.repository, other):
            trial.write()
            assert {disk.mode for disk in trial.backup(repository).result.disks} == {"incremental"}
    assert len(trial.domain.checkpoints()) == 2
    trial.write()
    trial.survives("incremental")
    assert len(trial.domain.checkpoints()) == 2


@pytest.mark.parametrize("older", [False, True], ids=["the only point", "with an older one left"])
def test_the_parent_deleted_from_the_repository(older: bool, trial: Trial) -> None:
    if older:
        trial.backup()
        trial.write()
    _repository, parent = trial.taken.pop()
    point = parent.result.point
    assert point is not None
    trial.repository.store.delete(names.manifest(point.uuid, point.id))
    for name in list(trial.repository.store.list(names.point_folder(point.uuid, point.id))):
        trial.repository.store.delete(name)
    trial.survives("full", "is missing from vd[ab]" if older else "has no restore point of")
