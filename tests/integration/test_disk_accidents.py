# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accidents to the disks and their images between two backups: nothing wrong is ever published."""

from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from trial import MIB, SIZE, Trial, begun, fresh
from witness import Witnessed

from _cbt.grid import BLOCK_SIZE

EXCHANGED = "belongs to vd[ab]"


@pytest.fixture
def trial(hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Trial]:
    """A trial after its first backup and some writes."""
    with begun(hypervisor, workspace) as made:
        yield made


# An older copy of the images: that of vda is copied onto the image, that of vdb takes its place.


def _copy(trial: Trial) -> None:
    for target in trial.targets:
        shutil.copy(trial.domain.image(target), trial.workspace / f"{target}.copy")


def _put_back(trial: Trial) -> None:
    one, two = trial.domain.image("vda"), trial.domain.image("vdb")
    run_tool(["cp", trial.workspace / "vda.copy", one])
    run_tool(["cp", trial.workspace / "vdb.copy", f"{two}.new"])
    run_tool(["mv", f"{two}.new", two])


def test_images_restored_from_copies_made_before_the_first_point(hypervisor: Hypervisor, workspace: Path) -> None:
    with fresh(hypervisor, workspace) as trial:
        trial.off_and_on(lambda: _copy(trial))
        trial.write()
        trial.backup()
        trial.write()
        trial.off_and_on(lambda: _put_back(trial))
        trial.write()
        trial.survives("full", "is missing from vd[ab]")


def test_images_restored_from_copies_made_between_two_points(trial: Trial) -> None:
    trial.off_and_on(lambda: _copy(trial))
    trial.write()
    trial.backup()
    trial.write()
    trial.off_and_on(lambda: _put_back(trial))
    trial.write()
    # The copies hold the first point's bitmap and tell what differs from that point.
    trial.survives("incremental")


def test_images_restored_from_copies_made_after_the_last_point(trial: Trial) -> None:
    trial.backup()
    trial.write()
    trial.off_and_on(lambda: _copy(trial))
    trial.write()
    trial.off_and_on(lambda: _put_back(trial))
    trial.write()
    trial.survives("incremental")


def test_image_restored_twice_from_the_same_copy(trial: Trial) -> None:
    image, copy = trial.domain.image("vda"), trial.workspace / "copy"
    trial.off_and_on(lambda: shutil.copy(image, copy))
    for _round in range(2):
        trial.write()
        trial.off_and_on(lambda: run_tool(["cp", copy, image]))
        trial.survives("incremental")


def test_image_restored_from_a_copy_made_while_it_was_written_to(trial: Trial) -> None:
    trial.off_and_on(lambda: None)
    trial.write()
    image, copy = trial.domain.image("vda"), trial.workspace / "copy"
    shutil.copy(image, copy)
    trial.write()
    trial.off_and_on(lambda: run_tool(["cp", copy, image]))
    trial.survives({"vda": "full", "vdb": "incremental"}, "was not saved properly")


# Disks in each other's place.


def _found_out(taken: Witnessed) -> None:
    """Assert that both disks were read in full because tracking contradicted what they hold."""
    assert [bool(disk.unmarked) for disk in taken.result.disks] == [True, True]
    assert sum("Tracking was wrong" in warning for warning in taken.result.warnings) == 2


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_images_of_two_disks_swapped_by_renaming(running: bool, trial: Trial) -> None:
    def swap() -> None:
        one, two = trial.domain.image("vda"), trial.domain.image("vdb")
        one.rename(f"{one}.aside")
        two.rename(one)
        Path(f"{one}.aside").rename(two)

    trial.domain.destroy()
    swap()
    if running:
        trial.domain.start()
        trial.write()
    trial.survives("full", EXCHANGED)


def _exchange(one: Path, two: Path) -> None:
    """Copy two images onto each other, whose files stay what they are."""
    run_tool(["cp", one, f"{one}.aside"])
    run_tool(["cp", two, one])
    run_tool(["cp", f"{one}.aside", two])


def _alike(trial: Trial) -> None:
    """Have two disks that differ in one block only, as the halves of a mirror may, back them up and write a block to each."""
    for target in trial.targets:
        trial.domain.write_random(target, 0, SIZE, 5)
    trial.domain.write("vdb", 5 * BLOCK_SIZE, BLOCK_SIZE, 1)
    trial.backup()
    trial.domain.write("vda", 3 * BLOCK_SIZE, 512, 2)
    trial.domain.write("vdb", 9 * BLOCK_SIZE, 512, 3)


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
@pytest.mark.parametrize("alike", [False, True], ids=["unlike", "alike"])
def test_images_of_two_disks_swapped_by_copying(alike: bool, running: bool, trial: Trial) -> None:
    if alike:
        _alike(trial)
    trial.domain.destroy()
    _exchange(trial.domain.image("vda"), trial.domain.image("vdb"))
    if running:
        trial.domain.start()
        trial.write()
    # The files are the same, and each holds a bitmap of the checkpoint's name: that of the other disk.
    trial.survives("full", EXCHANGED)


def test_images_of_two_domains_swapped_by_copying(trial: Trial, hypervisor: Hypervisor, workspace: Path) -> None:
    folder = workspace / "other"
    folder.mkdir()
    with fresh(hypervisor, folder) as other:
        other.repository = trial.repository
        other.backup()
        for each in (trial, other):
            each.domain.destroy()
        _exchange(trial.domain.image("vda"), other.domain.image("vda"))
        for each in (trial, other):
            each.domain.start()
            each.write()
            each.survives({"vda": "full", "vdb": "incremental"}, "is missing from vda")


def test_disks_swapped_in_the_definition(trial: Trial) -> None:
    def swap() -> None:
        one, two = str(trial.domain.image("vda")), str(trial.domain.image("vdb"))
        trial.redefine(lambda xml: xml.replace(one, "@").replace(two, one).replace("@", two))

    trial.off_and_on(swap)
    trial.write()
    trial.survives("full", "vd[ab] was .* at restore point .* and is .* now")


# Disks that come and go.


def test_disk_added(trial: Trial) -> None:
    trial.plug("vdc", trial.new_image("vdc"))
    trial.write()
    trial.survives({"vda": "incremental", "vdb": "incremental", "vdc": "full"}, "vdc was not part of restore point")


def test_disk_removed(trial: Trial) -> None:
    trial.unplug("vdb")
    trial.write()
    trial.survives({"vda": "incremental"})


def test_disk_removed_and_put_back_after_a_backup_without_it(trial: Trial) -> None:
    image = trial.unplug("vdb")
    trial.write()
    trial.backup()
    trial.plug("vdb", image)
    trial.write()
    # Its bitmap has recorded on, and so tells what differs from the last point it was part of.
    trial.survives("incremental")


def test_disk_swapped_for_another_image_under_the_same_target(trial: Trial) -> None:
    trial.unplug("vdb")
    trial.plug("vdb", trial.new_image("other"))
    trial.write()
    trial.survives({"vda": "incremental", "vdb": "full"}, "is missing from vdb")


def test_disk_swapped_for_a_copy_under_another_name(trial: Trial) -> None:
    def swap() -> None:
        other = trial.new_image("other")
        shutil.copy(trial.domain.image("vdb"), other)
        trial.use("vdb", other)

    trial.off_and_on(swap)
    trial.write()
    trial.survives({"vda": "incremental", "vdb": "full"}, "vdb was .* at restore point .* and is .*other.qcow2 now")


def test_image_replaced_by_an_empty_one_of_the_same_name(trial: Trial) -> None:
    image = trial.domain.image("vdb")
    trial.off_and_on(lambda: trial.new_image("other").rename(image))
    trial.write()
    trial.survives({"vda": "incremental", "vdb": "full"}, "is missing from vdb")


# Sizes.


def test_disk_enlarged_while_it_runs(trial: Trial) -> None:
    trial.domain.handle.blockResize("vda", SIZE + 3 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    trial.write()
    trial.survives({"vda": "full", "vdb": "incremental"}, "vda had 8 MiB at restore point .* and has 11 MiB now")


def _resized(image: Path, size: int, *options: str) -> None:
    run_tool(["qemu-img", "resize", "-q", *options, image, str(size)])


def test_one_disk_enlarged_and_one_shrunk_while_shut_off(trial: Trial) -> None:
    def resize() -> None:
        _resized(trial.domain.image("vda"), SIZE + 3 * MIB)
        _resized(trial.domain.image("vdb"), SIZE - 512 * 1001, "--shrink")

    trial.off_and_on(resize)
    trial.write()
    trial.survives("full", "vda had 8 MiB at .* and has 11 MiB now|vdb had 8 MiB at .* and has 7876096 bytes now")


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_disks_shrunk_and_enlarged_to_the_size_they_had(running: bool, trial: Trial) -> None:
    smaller = {"vda": SIZE - 2 * MIB, "vdb": SIZE - 512 * 1001}
    steps = [(target, size) for target in smaller for size in (smaller[target], SIZE)]

    def there_and_back() -> None:
        for target, size in steps:
            _resized(trial.domain.image(target), size, "--shrink")

    if running:
        for target, size in steps:
            trial.domain.handle.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    else:
        trial.off_and_on(there_and_back)
    trial.write()
    # QEMU marks nothing of this.
    _found_out(trial.survives("incremental"))
