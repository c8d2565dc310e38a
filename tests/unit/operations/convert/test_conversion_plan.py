# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an image is converted, and when it is not."""

from __future__ import annotations

import dataclasses
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _cbt.blocks.extents import Extent
from _cbt.errors import Refused
from _cbt.hypervisor.block_copy import mirror
from _cbt.hypervisor.definition import with_source
from _cbt.images.image_files import Image
from _cbt.images.marker import Original
from _cbt.operations.convert.plan import Candidate, ConversionOptions, new_path, plan
from _cbt.operations.convert.proof import unmarked

RAW = Image("/images/web1.img", "raw", 1 << 30, None, None, None, None, None, False, False, False)
V2 = dataclasses.replace(RAW, path="/images/web1.qcow2", format="qcow2", compat="0.10")
V3 = dataclasses.replace(V2, compat="1.1")
ORIGINAL = Original(RAW.path, "raw")


def candidate(image: Image = V2, **fields: Any) -> Candidate:
    return Candidate(image, **{"domain": "web1", "target": "vda", **fields})


@pytest.mark.parametrize(
    ("image", "running", "wish", "method", "path"),
    [
        (V2, False, ConversionOptions(), "amend", "/images/web1.qcow2"),
        (RAW, False, ConversionOptions(), "convert", "/images/web1.qcow2"),
        (V2, True, ConversionOptions(), "blockcopy", "/images/web1-v3.qcow2"),
        (RAW, True, ConversionOptions(), "blockcopy", "/images/web1.qcow2"),
        (V2, True, ConversionOptions(window=True), "amend", "/images/web1.qcow2"),
        (RAW, True, ConversionOptions(window=True), "convert", "/images/web1.qcow2"),
        (V2, False, ConversionOptions(method="convert"), "convert", "/images/web1-v3.qcow2"),
        (RAW, True, ConversionOptions(dest="/new/disk"), "blockcopy", "/new/disk"),
    ],
)
def test_the_method_follows_from_image_and_domain(
    image: Image, running: bool, wish: ConversionOptions, method: str, path: str
) -> None:
    made = plan(candidate(image, running=running), wish)
    assert made is not None
    assert (made.method, made.path) == (method, path)


@pytest.mark.parametrize("running", [True, False])
def test_nothing_is_done_to_an_image_that_can_be_tracked(running: bool) -> None:
    assert plan(candidate(V3, running=running), ConversionOptions()) is None


def test_a_waiting_original_is_handled_once_the_domain_runs() -> None:
    assert plan(candidate(V3, original=ORIGINAL), ConversionOptions()) is None
    made = plan(candidate(V3, original=ORIGINAL, running=True), ConversionOptions())
    assert made is not None and made.method == "finish"


@pytest.mark.parametrize(
    ("fields", "wish", "why"),
    [
        ({"running": True}, ConversionOptions(method="amend"), "the domain is running"),
        ({"running": True}, ConversionOptions(method="convert"), "the domain is running"),
        ({}, ConversionOptions(method="blockcopy"), "for a running domain"),
        ({"image": RAW}, ConversionOptions(method="amend"), "amend is for qcow2"),
        (
            {"image": dataclasses.replace(V2, snapshots=True), "running": True},
            ConversionOptions(),
            "internal snapshots",
        ),
        ({"image": dataclasses.replace(V2, encrypted=True), "running": True}, ConversionOptions(), "encrypted"),
        (
            {"image": dataclasses.replace(V2, data_file=True), "running": True},
            ConversionOptions(),
            "an external data file",
        ),
        ({"running": True, "ties": ("snapshots",)}, ConversionOptions(), "the domain has snapshots"),
        ({"running": True, "sharers": ("web2",)}, ConversionOptions(), "also a disk of web2"),
        ({"image": RAW, "device": True}, ConversionOptions(), "it is a device"),
        ({"running": True, "copying_to": ""}, ConversionOptions(), "a block job to elsewhere"),
        ({"running": True, "copying_to": "/other"}, ConversionOptions(), "a block job to /other"),
    ],
)
def test_a_conversion_that_would_lose_or_break_something_is_refused(
    fields: dict[str, Any], wish: ConversionOptions, why: str
) -> None:
    with pytest.raises(Refused, match=why):
        plan(candidate(**fields), wish)


def test_a_running_copy_job_of_our_own_is_resumed() -> None:
    made = plan(candidate(running=True, copying_to=new_path(V2)), ConversionOptions())
    assert made is not None and made.method == "blockcopy"


def test_amend_is_refused_neither_for_snapshots_nor_for_sharers() -> None:
    made = plan(
        candidate(dataclasses.replace(V2, snapshots=True), ties=("snapshots",), sharers=("web2",)), ConversionOptions()
    )
    assert made is not None and made.method == "amend"


def test_a_disk_keeps_what_it_says_beside_its_source() -> None:
    xml = (
        "<disk type='volume' device='disk'><driver name='qemu' type='raw' cache='none'/><source pool='p' volume='v' index='1'>"
        "<seclabel model='dac' relabel='no'/></source><backingStore type='file'/><target dev='vda' bus='virtio'/><serial>S1</serial></disk>"
    )
    disk = ElementTree.fromstring(with_source(xml, "/a b/new.qcow2"))
    assert (disk.get("type"), disk.get("device"), disk.findtext("serial")) == ("file", "disk", "S1")
    assert disk.find("backingStore") is None and disk.find("source/seclabel") is not None
    source, driver = disk.find("source"), disk.find("driver")
    assert source is not None and source.attrib == {"file": "/a b/new.qcow2"}
    assert driver is not None and driver.attrib == {"name": "qemu", "type": "qcow2", "cache": "none"}


def test_a_running_copy_is_read_from_the_domain() -> None:
    disk = "<domain><devices><disk><target dev='vda'/>{}</disk><disk><target dev='vdb'/></disk></devices></domain>"
    xml = disk.format("<mirror job='copy' ready='yes'><source file='/new.qcow2' index='7'/></mirror>")
    assert mirror(xml, "vda") == ("/new.qcow2", True, "libvirt-7-format")
    assert mirror(xml, "vdb") is None
    assert mirror(disk.format("<mirror job='active-commit'><source file='/base' index='7'/></mirror>"), "vda") == (
        None,
        False,
        "",
    )


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20))), st.integers(0, 50))
def test_marked_and_unmarked_extents_make_up_the_disk(steps: list[tuple[int, int]], rest: int) -> None:
    marked, offset = [], 0
    for gap, length in steps:
        marked.append(Extent(offset + gap, length, False))
        offset += gap + length
    size = offset + rest
    covered = sorted([*marked, *unmarked(marked, size)])
    assert sum(extent.length for extent in covered) == size
    assert all(one.end == other.offset for one, other in zip(covered, covered[1:]))
