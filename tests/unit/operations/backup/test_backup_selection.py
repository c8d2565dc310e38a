"""Which disks a backup takes, and which checkpoints go afterwards."""

from __future__ import annotations

import pytest
from samples import GIB, disk, facts, plan_of, point, record

from _cbt.errors import Refused, size_text
from _cbt.hypervisor.domain_xml.disks import Bitmap, Disk, Selection
from _cbt.operations.backup.plan import Situation, our_checkpoints

OURS = "cbt-12345678-"
FOREIGN = ("backup-2026", "cbt-87654321-20260101T120000Z-00000001", "virtnbdbackup.0", "cbt-", "cbt-1234567")

UNREADABLE = {
    "cdrom": (disk("sdz", device="cdrom"), "sdz is a cdrom: removable media are not part of a backup."),
    "floppy": (disk("fda", device="floppy"), "fda is a floppy: removable media are not part of a backup."),
    "lun": (
        disk("sdz", device="lun"),
        "sdz is a passed-through LUN, which QEMU cannot read for a backup. Back it up inside the guest.",
    ),
    "empty": (Disk("sdz"), "sdz has no medium."),
    "transient": (disk("sdz", transient=True), "sdz is transient: its changes are discarded when the domain ends."),
}


def found(*disks: Disk, **fields: object) -> Situation:
    return Situation(facts(*disks), (), (), OURS, **fields)  # type: ignore[arg-type]


def taken(situation: Situation, selection: Selection) -> list[str]:
    return [each.target for each in plan_of(situation, selection=selection).disks if each.read]


@pytest.mark.parametrize("mode", ["auto", "full", "copy"])
@pytest.mark.parametrize(("other", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_disk_without_data_to_protect_is_skipped_with_the_reason(other: Disk, reason: str, mode: str) -> None:
    plan = plan_of(found(disk(), other), mode)
    skipped = plan.disks[1]
    assert (skipped.mode, skipped.reason, skipped.read, skipped.dirty_bytes) == ("skipped", reason, False, None)
    assert other.target not in plan.tracked
    assert plan.warnings == (() if other.device == "cdrom" else (reason,))


@pytest.mark.parametrize(("other", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_domain_with_nothing_else_is_refused(other: Disk, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        plan_of(found(other))
    assert str(caught.value) == f"There is nothing to back up on web1. {reason}"


def test_a_domain_without_disks_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        plan_of(found())
    assert str(caught.value) == "There is nothing to back up on web1."


def test_a_domain_whose_disks_are_all_left_out_is_refused() -> None:
    with pytest.raises(
        Refused,
        match="nothing to back up on web1. vda is among exclude_disks. Cannot track vdb: .* scan_untracked is false",
    ):
        plan_of(found(disk(), disk("vdb", format="raw")), selection=Selection(exclude=("vda",)), scan_untracked=False)


SELECTIONS = {
    "all": (Selection(), ["sda", "sdaa", "sdb"]),
    "sda is not sdaa": (Selection(("sda",)), ["sda"]),
    "sdaa is not sda": (Selection(("sdaa",)), ["sdaa"]),
    "exclude sda": (Selection(exclude=("sda",)), ["sdaa", "sdb"]),
    "include two": (Selection(("sdb", "sda")), ["sda", "sdb"]),
    "exclude wins": (Selection(("sda", "sdb"), ("sda",)), ["sdb"]),
}


@pytest.mark.parametrize(("selection", "expected"), SELECTIONS.values(), ids=SELECTIONS.keys())
def test_disks_are_selected_by_their_exact_target(selection: Selection, expected: list[str]) -> None:
    assert taken(found(disk("sda"), disk("sdaa"), disk("sdb")), selection) == expected


def test_an_excluded_disk_names_the_option_that_excluded_it() -> None:
    plan = plan_of(found(disk("vda"), disk("vdb"), disk("vdc")), selection=Selection(("vda", "vdb"), ("vdb",)))
    assert [each.reason for each in plan.disks[1:]] == [
        "vdb is among exclude_disks.",
        "vdc is not among include_disks.",
    ]
    assert plan.tracked == ("vda",)


@pytest.mark.parametrize(
    "selection",
    [Selection(("vda", "vdx")), Selection(exclude=("vdx",)), Selection(("vda",), ("vdx",))],
    ids=["include", "exclude", "both"],
)
def test_an_unknown_disk_is_refused_with_the_available_ones(selection: Selection) -> None:
    with pytest.raises(Refused) as caught:
        plan_of(found(disk("vdb"), disk("vda")), selection=selection)
    assert str(caught.value) == "web1 has no disk vdx; it has vda, vdb."


def test_an_empty_include_takes_nothing() -> None:
    with pytest.raises(Refused, match="nothing to back up"):
        plan_of(found(disk()), selection=Selection(()))


def with_checkpoints(*disks: Disk, known: tuple[str, ...] = ()) -> Situation:
    return Situation(facts(*disks), (), known, OURS)


def test_all_own_checkpoints_are_superseded_including_leftover_bitmaps() -> None:
    """A run that was killed leaves a bitmap, or no more than a mark, whose checkpoint libvirt may have lost."""
    mark = Bitmap(f"{OURS}e@vda", 1 << 31, 0, recording=False)
    situation = with_checkpoints(
        disk("vda", (f"{OURS}a", f"{OURS}b", mark)), disk("vdb", (f"{OURS}c",)), known=(f"{OURS}d", f"{OURS}a")
    )
    assert plan_of(situation).superseded == tuple(f"{OURS}{letter}" for letter in "abcde")
    assert our_checkpoints(situation) == [f"{OURS}{letter}" for letter in "abcde"]


@pytest.mark.parametrize("mode", ["auto", "full", "copy"])
def test_foreign_checkpoints_are_never_superseded(mode: str) -> None:
    situation = with_checkpoints(disk(bitmaps=FOREIGN), known=FOREIGN)
    assert plan_of(situation, mode).superseded == ()


def test_foreign_checkpoints_never_serve_as_base() -> None:
    situation = Situation(facts(disk(bitmaps=FOREIGN)), (point(1, (record(),)),), FOREIGN, OURS)
    plan = plan_of(situation)
    assert (plan.disks[0].mode, plan.disks[0].since) == ("full", None)


def test_nothing_is_superseded_where_no_new_checkpoint_is_made() -> None:
    """A scan of raw disks alone must not take the tracking of a disk left out this time."""
    situation = with_checkpoints(disk("vda", (f"{OURS}a",)), disk("vdb", format="raw"), known=(f"{OURS}a",))
    plan = plan_of(situation, selection=Selection(("vdb",)))
    assert (plan.tracked, plan.superseded) == ((), ())


def test_a_plan_without_any_history_has_no_parent() -> None:
    assert plan_of(found(disk())).parent is None


def test_the_parent_is_the_newest_point_any_disk_is_compared_with() -> None:
    points = (point(1, (record("vda"), record("vdb"))), point(2, (record("vdb"),)))
    assert plan_of(Situation(facts(disk("vda"), disk("vdb")), points, (), OURS)).parent == points[1].id
    assert plan_of(Situation(facts(disk("vda")), points, (), OURS)).parent == points[0].id


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (1024, "1 KiB"),
        (65536 + 512, "66048 bytes"),
        (3 << 20, "3 MiB"),
        (20 * GIB, "20 GiB"),
        (GIB + 1024, "1048577 KiB"),
    ],
)
def test_sizes_are_reported_exactly(size: int, text: str) -> None:
    assert size_text(size) == text
