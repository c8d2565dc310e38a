"""Which disks of a restore point go where."""

from __future__ import annotations

from typing import Any

import pytest
from samples import GIB, point, record

from _cbt.errors import Refused
from _cbt.hypervisor.domain_xml.disks import Selection
from _cbt.operations.restore.restore import DiskRestore, RestoreRequest, make_plan

POINT = point(1, (record("vda"), record("vdb", 512), record("sdaa")))
WHOSE = f"Restore point {POINT.id} of web1"


def paths(**fields: Any) -> dict[str, str]:
    return {each.target: each.path for each in make_plan(POINT, RestoreRequest("web1", **fields))}


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_images_are_named_by_domain_target_and_format(fmt: str) -> None:
    assert make_plan(POINT, RestoreRequest("web1", dest="/r", format=fmt)) == (
        DiskRestore("vda", f"/r/web1-vda.{fmt}", fmt, GIB),
        DiskRestore("vdb", f"/r/web1-vdb.{fmt}", fmt, 512),
        DiskRestore("sdaa", f"/r/web1-sdaa.{fmt}", fmt, GIB),
    )


def test_the_name_is_the_domains_even_if_it_was_asked_for_by_uuid() -> None:
    assert make_plan(POINT, RestoreRequest(POINT.uuid, dest="/r"))[0].path == "/r/web1-vda.qcow2"


PLACES = {
    "disk_map alone restores these disks alone": ({"disk_map": {"vdb": "/x/b.img"}}, {"vdb": "/x/b.img"}),
    "disk_map and dest restore all": (
        {"disk_map": {"vdb": "/x/b.img"}, "dest": "/r"},
        {"vda": "/r/web1-vda.qcow2", "vdb": "/x/b.img", "sdaa": "/r/web1-sdaa.qcow2"},
    ),
    "include": ({"dest": "/r", "selection": Selection(("vdb",))}, {"vdb": "/r/web1-vdb.qcow2"}),
    "exclude": ({"dest": "/r", "selection": Selection(exclude=("vda", "sdaa"))}, {"vdb": "/r/web1-vdb.qcow2"}),
    "a new name": (
        {"dest": "/r", "new_name": "web2", "disk_map": {"vdb": "/dev/vg/b"}},
        {"vda": "/r/web2-vda.qcow2", "vdb": "/dev/vg/b", "sdaa": "/r/web2-sdaa.qcow2"},
    ),
    "a path with spaces": ({"disk_map": {"vda": "/my images/a b.qcow2"}}, {"vda": "/my images/a b.qcow2"}),
}


@pytest.mark.parametrize(("fields", "expected"), PLACES.values(), ids=PLACES.keys())
def test_disks_go_to_their_requested_destinations(fields: dict[str, Any], expected: dict[str, str]) -> None:
    assert paths(**fields) == expected


REFUSED = {
    "unknown in disk_map": ({"disk_map": {"sda": "/x/a"}}, f"{WHOSE} has no disk sda; it has sdaa, vda, vdb."),
    "unknown in include_disks": (
        {"dest": "/r", "selection": Selection(("vdc",))},
        f"{WHOSE} has no disk vdc; it has sdaa, vda, vdb.",
    ),
    "unknown in exclude_disks": (
        {"dest": "/r", "selection": Selection(exclude=("vdc",))},
        f"{WHOSE} has no disk vdc; it has sdaa, vda, vdb.",
    ),
    "nowhere": (
        {},
        "Cannot restore vda to web1-vda.qcow2: the path is not absolute. Set dest, or give disk_map an absolute path.",
    ),
    "relative dest": (
        {"dest": "r"},
        "Cannot restore vda to r/web1-vda.qcow2: the path is not absolute. Set dest, or give disk_map an absolute path.",
    ),
    "relative disk_map": (
        {"disk_map": {"vda": "a.img"}},
        "Cannot restore vda to a.img: the path is not absolute. Set dest, or give disk_map an absolute path.",
    ),
    "metadata of a raw image": (
        {"dest": "/r", "format": "raw", "preallocation": "metadata"},
        "A raw image has no metadata to preallocate. Set preallocation to none, falloc or full.",
    ),
    "nothing left": (
        {"dest": "/r", "selection": Selection(exclude=("vda", "vdb", "sdaa"))},
        f"{WHOSE} has no disk left to restore. Check include_disks, exclude_disks and disk_map.",
    ),
    "disk_map and exclude_disks leave nothing": (
        {"disk_map": {"vda": "/x/a"}, "selection": Selection(exclude=("vda",))},
        f"{WHOSE} has no disk left to restore. Check include_disks, exclude_disks and disk_map.",
    ),
    "same path twice": (
        {"disk_map": {"vda": "/x/a", "vdb": "/x/a"}},
        "Two disks cannot be restored to the same path /x/a.",
    ),
    "same path by disk_map and dest": (
        {"disk_map": {"vda": "/r/web1-vdb.qcow2"}, "dest": "/r"},
        "Two disks cannot be restored to the same path /r/web1-vdb.qcow2.",
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_impossible_request_is_refused_before_anything_is_written(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as caught:
        paths(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize("spelling", ["/x//a", "/x/./a", "/x/y/../a", "//x/a"])
def test_the_same_path_spelled_differently_is_refused_too(spelling: str) -> None:
    """With force, the second disk would take the place of the first."""
    with pytest.raises(Refused, match="same path"):
        paths(disk_map={"vda": "/x/a", "vdb": spelling})
