"""How each disk of a domain is read, and why: the table of all rules."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from samples import GIB, disk, facts, plan_of, point, point_id, record

from _cbt.errors import Refused
from _cbt.hypervisor.domain_xml.disks import Bitmap, Disk
from _cbt.operations.backup.plan import BackupPlan, DiskPlan, Situation, untracked
from _cbt.repository.format.manifests import RestorePoint

OURS = "cbt-12345678-"


def checkpoint(number: int) -> str:
    return f"{OURS}{point_id(number)}"


def tracked_point(number: int, *targets: str, **fields: Any) -> RestorePoint:
    """A restore point with a checkpoint of ours."""
    return point(
        number, tuple(record(target) for target in targets or ("vda",)), checkpoint=checkpoint(number), **fields
    )


def situation(
    *disks: Disk, points: tuple[RestorePoint, ...] = (), known: tuple[str, ...] | None = None, **fields: Any
) -> Situation:
    """What is found; ``known`` to libvirt are by default the checkpoints of all points."""
    names = tuple(each.checkpoint for each in points if each.checkpoint) if known is None else known
    return Situation(facts(*disks), points, names, OURS, **fields)


def only(plan: BackupPlan) -> DiskPlan:
    (found,) = plan.disks
    return found


ONE, TWO, THREE = point_id(1), point_id(2), point_id(3)
SINCE1, SINCE2 = checkpoint(1), checkpoint(2)
BROKEN = Bitmap(SINCE1, 65536, 0, inconsistent=True)
SOUND = Bitmap(SINCE1, 65536, 131072)
STOPPED = Bitmap(SINCE1, 65536, 0, recording=False)


def marking(target: str, number_id: str = ONE) -> Bitmap:
    """The mark of a disk at a restore point."""
    return Bitmap(f"{OURS}{number_id}@{target}", 1 << 31, 0, recording=False)


CONVERT = "Convert it with the kvm.cbt.qcow2_v3 role, or let it be backed up by full scan (scan_untracked: true)."


def test_changes_since_the_newest_point_are_read_where_its_bitmap_is_sound() -> None:
    plan = plan_of(situation(disk(bitmaps=(SINCE1,)), points=(tracked_point(1),)))
    reason = f"Changes since restore point {ONE} are known from checkpoint {SINCE1}."
    assert plan == BackupPlan(
        (DiskPlan("vda", "incremental", reason, SINCE1, ONE, 131072),), ("vda",), ONE, (SINCE1,), (), {}, None
    )


def test_the_first_backup_is_full_without_warning() -> None:
    plan = plan_of(situation(disk()))
    reason = "This repository has no restore point of web1 with a checkpoint yet."
    assert plan == BackupPlan((DiskPlan("vda", "full", reason, dirty_bytes=GIB),), ("vda",), None, (), (), {}, None)


def point_above(*below: str) -> RestorePoint:
    """A tracked point whose disk had these files below its image."""
    return dataclasses.replace(tracked_point(1), disks=(record("vda", image={"below": [*below]}),))


# What is below the image now, and was at the restore point; None if unknown.
ALIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the same": ({"chain": (("raw", "/a"),)}, {"below": ["raw:/a"]}),
    "named in the definition, too": ({"backing": (("raw", "/a"), ("", ""))}, {"below": ["raw:/a"]}),
    "nothing": ({"backing": (("", ""),)}, {"below": []}),
    "unknown now": ({}, {"below": ["raw:/a"]}),
    "unknown then": ({"chain": (("raw", "/a"),)}, {"below": None}),
    "a restore point of an older version": ({"chain": (("raw", "/a"),)}, {}),
}


@pytest.mark.parametrize(("now", "then"), ALIKE.values(), ids=ALIKE.keys())
def test_changes_are_known_above_the_same_files(now: dict[str, Any], then: dict[str, Any]) -> None:
    before = dataclasses.replace(tracked_point(1), disks=(record("vda", image=then),))
    (plan,) = plan_of(situation(disk(bitmaps=(SINCE1,), **now), points=(before,))).disks
    assert plan.mode == "incremental"


# What stands in the way of an incremental: disk, points, other facts, and how the reason begins.
GAPS: dict[str, tuple[Disk, tuple[RestorePoint, ...], dict[str, Any], str]] = {
    "bitmap missing": (disk(), (tracked_point(1),), {}, f"the bitmap {SINCE1} is missing from vda"),
    "bitmap inconsistent": (
        disk(bitmaps=(BROKEN,)),
        (tracked_point(1),),
        {},
        f"the bitmap {SINCE1} of vda was not saved properly",
    ),
    "bitmap not recording": (
        disk(bitmaps=(STOPPED,)),
        (tracked_point(1),),
        {},
        f"the bitmap {SINCE1} of vda is not recording",
    ),
    "another disk's image": (
        disk(bitmaps=(SOUND, marking("vdb"))),
        (tracked_point(1),),
        {},
        f"the bitmap {SINCE1} in the image of vda belongs to vdb: the image was replaced with that of another disk",
    ),
    "mark missing": (
        disk(bitmaps=(SOUND,)),
        (tracked_point(1),),
        {},
        f"the bitmap {SINCE1} of vda lacks the mark of its disk",
    ),
    "marked twice": (
        disk(bitmaps=(SOUND, marking("vda"), marking("vdb"))),
        (tracked_point(1),),
        {},
        f"the bitmap {SINCE1} in the image of vda belongs to",
    ),
    "marked at another point": (
        disk(bitmaps=(SOUND, marking("vda", TWO))),
        (tracked_point(1),),
        {},
        f"the bitmap {SINCE1} of vda lacks the mark",
    ),
    "disk new": (disk(bitmaps=(SINCE1,)), (tracked_point(1, "vdb"),), {}, f"vda was not part of restore point {ONE}"),
    "disk grown": (
        disk(bitmaps=(SINCE1,), virtual_size=2 * GIB),
        (tracked_point(1),),
        {},
        f"vda had 1 GiB at restore point {ONE} and has 2 GiB now",
    ),
    "disk shrunk": (
        disk(bitmaps=(SINCE1,), virtual_size=GIB - 512),
        (tracked_point(1),),
        {},
        f"vda had 1 GiB at restore point {ONE} and has 1073741312 bytes now",
    ),
    "size unknown": (
        disk(bitmaps=(SINCE1,), virtual_size=None),
        (tracked_point(1),),
        {},
        f"vda had 1 GiB at restore point {ONE}",
    ),
    "source changed": (
        disk(bitmaps=(SINCE1,), source="/images/new.qcow2"),
        (tracked_point(1),),
        {},
        f"vda was /images/vda.qcow2 at restore point {ONE} and is /images/new.qcow2 now",
    ),
    "another backing file": (
        disk(bitmaps=(SINCE1,), backing=(("raw", "/b"), ("", ""))),
        (point_above("raw:/a"),),
        {},
        f"vda has other backing or data files than at restore point {ONE}",
    ),
    "a backing file lower down": (
        disk(bitmaps=(SINCE1,), chain=(("qcow2", "/b"), ("raw", "/d"))),
        (point_above("qcow2:/b", "raw:/c"),),
        {},
        f"vda has other backing or data files than at restore point {ONE}",
    ),
    "no backing file any more": (
        disk(bitmaps=(SINCE1,), backing=(("", ""),)),
        (point_above("raw:/a"),),
        {},
        f"vda has other backing or data files than at restore point {ONE}",
    ),
    "a backing file now": (
        disk(bitmaps=(SINCE1,), chain=(("raw", "/a"),)),
        (point_above(),),
        {},
        f"vda has other backing or data files than at restore point {ONE}",
    ),
    "base damaged": (
        disk(bitmaps=(SINCE1,)),
        (tracked_point(1),),
        {"damaged": {(ONE, "vda"): "pack ab is missing"}},
        f"restore point {ONE} cannot be built on: pack ab is missing",
    ),
}


@pytest.mark.parametrize(("found", "points", "others", "cause"), GAPS.values(), ids=GAPS.keys())
def test_auto_reads_in_full_where_changes_are_not_known_and_says_why(
    found: Disk, points: Any, others: dict[str, Any], cause: str
) -> None:
    plan = plan_of(situation(found, points=points, **others))
    assert only(plan).mode == "full"
    assert only(plan).since is None
    assert only(plan).reason.startswith(f"Read in full: {cause}")
    assert plan.warnings == (only(plan).reason,)
    assert plan.tracked == ("vda",)


@pytest.mark.parametrize(("found", "points", "others", "cause"), GAPS.values(), ids=GAPS.keys())
def test_incremental_is_refused_where_changes_are_not_known_and_says_why(
    found: Disk, points: Any, others: dict[str, Any], cause: str
) -> None:
    with pytest.raises(Refused) as caught:
        plan_of(situation(found, points=points, **others), "incremental")
    message = str(caught.value)
    assert message.startswith("Cannot back up web1 incrementally. vda: ")
    assert cause in message
    assert message.endswith("Use mode auto to read these disks in full.")


def test_a_checkpoint_libvirt_forgot_is_redefined_where_its_bitmap_is_sound() -> None:
    plan = plan_of(situation(disk(bitmaps=(SINCE1,)), disk("vdb"), points=(tracked_point(1, "vda", "vdb"),), known=()))
    assert [each.mode for each in plan.disks] == ["incremental", "full"]
    assert plan.redefined == {SINCE1: ("vda",)}


def test_incremental_is_refused_as_first_backup() -> None:
    with pytest.raises(Refused, match="no restore point of web1 with a checkpoint yet"):
        plan_of(situation(disk()), "incremental")


def test_a_full_reading_is_compared_with_the_newest_sound_point() -> None:
    points = (tracked_point(1), tracked_point(2), tracked_point(3, "vdb"))
    assert only(plan_of(situation(disk(), points=points))).base == TWO
    damaged = {(TWO, "vda"): "pack ab is missing"}
    assert only(plan_of(situation(disk(), points=points, damaged=damaged))).base == ONE


def test_each_disk_is_decided_alone_and_joins_the_same_checkpoint() -> None:
    """A disk plugged in since, a raw one and one whose bitmap broke do not keep the others from an incremental."""
    found = situation(
        disk("vda", (SINCE1,)),
        disk("vdb", (SINCE1,)),
        disk("vdc", (BROKEN,)),
        disk("vdd"),
        disk("vde", format="raw"),
        points=(tracked_point(1, "vda", "vdb", "vdc", "vde"),),
    )
    plan = plan_of(found)
    assert [(each.target, each.mode, each.base) for each in plan.disks] == [
        ("vda", "incremental", ONE),
        ("vdb", "incremental", ONE),
        ("vdc", "full", ONE),
        ("vdd", "full", None),
        ("vde", "scan", ONE),
    ]
    assert plan.tracked == ("vda", "vdb", "vdc", "vdd")
    assert plan.parent == ONE
    assert plan.warnings == tuple(plan.disks[index].reason for index in (2, 3, 4))


def test_a_refused_incremental_names_every_disk_that_prevents_it() -> None:
    found = situation(
        disk("vda", (SINCE1,)), disk("vdb"), disk("vdc", (BROKEN,)), points=(tracked_point(1, "vda", "vdb", "vdc"),)
    )
    with pytest.raises(
        Refused, match=r"vdb: Read in full: .*missing.* vdc: Read in full: .*not saved properly"
    ) as caught:
        plan_of(found, "incremental")
    assert "vda:" not in str(caught.value)


def test_an_older_checkpoint_is_used_if_the_newest_is_lost() -> None:
    points = (tracked_point(1), tracked_point(2))
    plan = plan_of(situation(disk(bitmaps=(SINCE1,)), points=points, known=(SINCE1,)))
    assert (only(plan).mode, only(plan).since, only(plan).base) == ("incremental", SINCE1, ONE)
    assert (plan.parent, plan.warnings) == (ONE, ())


def test_the_newest_of_several_sound_checkpoints_serves() -> None:
    points = (tracked_point(1), tracked_point(2), point(3))
    plan = plan_of(situation(disk(bitmaps=(SINCE1, SINCE2)), points=points))
    assert (only(plan).since, only(plan).base) == (SINCE2, TWO)


def test_the_fault_of_the_newest_checkpoint_is_reported_if_no_checkpoint_is_usable() -> None:
    points = (tracked_point(1), tracked_point(2))
    plan = plan_of(situation(disk(), points=points, known=()))
    assert checkpoint(2) in only(plan).reason
    assert checkpoint(1) not in only(plan).reason


def test_a_bitmap_that_shares_only_a_name_prefix_is_not_used() -> None:
    plan = plan_of(situation(disk(bitmaps=(f"{SINCE1}0",)), points=(tracked_point(1),)))
    assert only(plan).mode == "full"


def test_a_requested_full_backup_reads_everything_and_keeps_the_history() -> None:
    plan = plan_of(situation(disk(bitmaps=(SINCE1,)), points=(tracked_point(1),)), "full")
    assert plan == BackupPlan(
        (DiskPlan("vda", "full", "The mode is full.", None, ONE, GIB),), ("vda",), ONE, (SINCE1,), (), {}, None
    )


def test_a_copy_leaves_tracking_untouched() -> None:
    found = situation(disk(bitmaps=(SINCE1,)), disk("vdb", format="raw"), points=(tracked_point(1, "vda", "vdb"),))
    plan = plan_of(found, "copy")
    assert [(each.mode, each.since, each.base) for each in plan.disks] == [("copy", None, ONE)] * 2
    assert (plan.tracked, plan.superseded, plan.warnings, plan.parent) == ((), (), (), ONE)


UNTRACKABLE = {
    "raw": (disk(format="raw", compat=None), f"Cannot track vda: a RAW image (file) holds no bitmaps. {CONVERT}"),
    "raw device": (
        disk(format="raw", type="block"),
        f"Cannot track vda: a RAW image (block) holds no bitmaps. {CONVERT}",
    ),
    "vmdk": (disk(format="vmdk"), f"Cannot track vda: a vmdk image (file) holds no bitmaps. {CONVERT}"),
    "qcow2 v2": (disk(compat="0.10"), f"Cannot track vda: the image is qcow2 v2, which holds no bitmaps. {CONVERT}"),
    "read-only": (
        disk(readonly=True),
        "Cannot track vda: it is read-only, so no bitmap can be stored in it. It is read in full each time.",
    ),
}


@pytest.mark.parametrize("mode", ["auto", "full"])
@pytest.mark.parametrize(("found", "reason"), UNTRACKABLE.values(), ids=UNTRACKABLE.keys())
def test_a_disk_that_cannot_be_tracked_is_scanned_and_gets_no_bitmap(found: Disk, reason: str, mode: str) -> None:
    plan = plan_of(situation(found, points=(point(1),)), mode)
    assert plan == BackupPlan((DiskPlan("vda", "scan", reason, None, ONE, GIB),), (), ONE, (), (reason,), {}, None)


@pytest.mark.parametrize(("found", "reason"), UNTRACKABLE.values(), ids=UNTRACKABLE.keys())
def test_incremental_is_refused_where_nothing_is_tracked(found: Disk, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        plan_of(situation(found), "incremental")
    assert str(caught.value) == f"Cannot back up web1 incrementally: none of its disks is tracked. {reason}"


def test_incremental_takes_a_scanned_disk_along_with_a_tracked_one() -> None:
    plan = plan_of(
        situation(disk(bitmaps=(SINCE1,)), disk("vdb", format="raw"), points=(tracked_point(1),)), "incremental"
    )
    assert [each.mode for each in plan.disks] == ["incremental", "scan"]


@pytest.mark.parametrize("mode", ["auto", "full", "copy"])
@pytest.mark.parametrize(("found", "reason"), UNTRACKABLE.values(), ids=UNTRACKABLE.keys())
def test_with_scan_untracked_false_it_is_left_out_with_the_reason(found: Disk, reason: str, mode: str) -> None:
    raw = dataclasses.replace(found, target="vda")
    plan = plan_of(situation(raw, disk("vdb")), mode, scan_untracked=False)
    assert plan.disks[0] == DiskPlan("vda", "skipped", f"{reason} It was left out because scan_untracked is false.")
    assert plan.disks[1].read


def test_disks_whose_images_store_no_bitmap_are_read_in_full_and_lose_no_other_tracking() -> None:
    both = (disk(bitmaps=(SINCE1,)), disk("vdb", bitmaps=(SINCE1,)))
    plan = plan_of(situation(*both, points=(tracked_point(1, "vda", "vdb"),)))
    one = untracked(plan, {"vda": "no space."})
    assert [(each.mode, each.since, each.base) for each in one.disks] == [
        ("full", None, ONE),
        ("incremental", SINCE1, ONE),
    ]
    assert (one.tracked, one.superseded, one.warnings) == (("vdb",), (SINCE1,), ("Read in full: no space.",))
    none = untracked(plan, {"vda": "no space.", "vdb": "read-only."})
    assert (none.tracked, none.superseded) == ((), ())
    assert untracked(plan, {}) == plan
