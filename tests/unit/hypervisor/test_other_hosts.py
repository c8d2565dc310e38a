# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disks of a shut-off domain are left closed, because another host may have them open."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from samples import disk, facts, plan_of

from _cbt.errors import Refused
from _cbt.hypervisor.domain import DomainFacts
from _cbt.hypervisor.domain_xml.disks import Selection
from _cbt.hypervisor.other_hosts import OtherHosts, withheld
from _cbt.images import locks
from _cbt.operations.backup.plan import Situation

DEVICE = "/dev/null"  # a device of every host


@pytest.fixture
def shut_off(tmp_path: Path) -> DomainFacts:
    """A domain with an image file and disks of every kind without image locks."""
    (tmp_path / "vda").touch()
    disks = (
        disk("vda", source=str(tmp_path / "vda")),
        disk("vdb", type="block", source=DEVICE),
        disk("vdc", source=DEVICE),  # a device as a file
        disk("vdd", type="network", source="rbd:pool/image"),
        disk("vde", type="network", source=None),  # the default export of a server
        disk("vdf", type="volume", source="pool/volume"),
        disk("vdg", type="block", source=DEVICE, readonly=True),
        disk("sda", device="cdrom", source=None),
        disk("sdb", type="block", device="lun", source=DEVICE),
    )
    return dataclasses.replace(facts(*disks), active=False, state="shutoff")


def closed(found: DomainFacts, others: OtherHosts, last: str | None, **wish: Any) -> list[str]:
    return [each.target for each in withheld(found, others, "kvm2", last, **wish).disks if each.withheld]


@pytest.mark.parametrize(
    ("others", "last"),
    [
        (OtherHosts(silent=("kvm1",)), None),
        (OtherHosts(silent=("kvm1",)), "kvm2"),
        (OtherHosts(silent=("kvm1",)), "kvm1"),
        (OtherHosts(answered=("kvm1",), silent=("kvm3",)), "kvm1"),
        (OtherHosts(answered=("kvm1",)), "kvm9"),  # not in the cluster, or in another job slice
    ],
)
def test_only_disks_with_locks_of_all_hosts_are_opened_while_a_host_is_silent(
    shut_off: DomainFacts, others: OtherHosts, last: str | None
) -> None:
    assert closed(shut_off, others, last, selection=Selection()) == ["vdb", "vdc", "vdd", "vdf"]
    assert closed(shut_off, others, last, selection=Selection(("vda", "vdb"))) == ["vdb"]
    assert closed(shut_off, others, last, selection=Selection(("vda",))) == []
    assert len(closed(shut_off, others, last)) == len(shut_off.disks)  # all of them are opened together
    assert closed(dataclasses.replace(shut_off, active=True), others, last) == []
    assert closed(shut_off, dataclasses.replace(others, confirmed=True), last) == []


@pytest.mark.parametrize("last", [None, "kvm2"])
def test_a_domain_that_no_other_host_had_is_opened(shut_off: DomainFacts, last: str | None) -> None:
    assert closed(shut_off, OtherHosts(), last) == []
    assert closed(shut_off, OtherHosts(answered=("kvm1", "kvm3")), last) == []


def test_without_a_cluster_the_host_of_the_last_restore_point_decides(shut_off: DomainFacts) -> None:
    with pytest.raises(
        Refused, match="vdb.* of web1 may be in use on another host: .* kvm1 did not report .*offline_conf"
    ):
        closed(shut_off, OtherHosts(), "kvm1")
    assert closed(shut_off, OtherHosts(), "kvm1", selection=Selection(("vda", "vdg"))) == []
    assert closed(shut_off, OtherHosts(confirmed=True), "kvm1") == []
    assert closed(shut_off, OtherHosts(answered=("kvm1",)), "kvm1") == []


def test_files_of_another_hypervisor_are_told_apart_by_their_path(shut_off: DomainFacts) -> None:
    found = dataclasses.replace(shut_off, host="kvm2")
    assert closed(found, OtherHosts(silent=("kvm1",)), None, selection=Selection(("vda", "vdc"))) == ["vdc"]


@pytest.mark.parametrize(
    ("mode", "planned"),
    [("auto", "differential"), ("incremental", "differential"), ("full", "copy"), ("copy", "copy")],
)
def test_a_disk_that_is_left_out_keeps_its_bitmaps(mode: str, planned: str) -> None:
    name = "cbt-12345678-20260101T120000Z-00000001"
    vda = disk("vda", (name,))
    vdb = dataclasses.replace(disk("vdb", (name,)), withheld="vdb is left out.")
    plan = plan_of(Situation(facts(vda, vdb), (), (name,), "cbt-12345678-"), mode)
    assert [each.mode for each in plan.disks][1] == "skipped"
    assert (plan.tracked, plan.superseded, plan.skipped) == ((), (), None)
    assert "vdb is left out." in plan.warnings
    if planned == "copy":
        assert plan.disks[0].mode == "copy"


def test_a_backup_without_any_other_disk_is_skipped() -> None:
    vdb = dataclasses.replace(disk("vdb"), withheld="vdb is left out.")
    plan = plan_of(Situation(facts(vdb), (), (), "cbt-12345678-"))
    assert (plan.skipped, plan.warnings) == ("vdb is left out.", ("vdb is left out.",))


NFS = "40 1 0:50 / {folder} rw,relatime shared:1 - nfs server:/images rw,vers=3,{option},addr=192.0.2.1\n"
ROOT = "1 0 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"


@pytest.mark.parametrize(
    ("option", "local"),
    [
        ("local_lock=none", False),
        ("nolock,local_lock=all", True),
        ("local_lock=posix", True),
        ("local_lock=flock", False),
        ("localflocks", True),
    ],
)
def test_locks_of_one_host_only_are_known_by_the_options_of_the_mount(option: str, local: bool) -> None:
    mounts = [ROOT, NFS.format(folder="/srv/vm\\040images", option=option)]
    assert locks.locked_locally(mounts, "/srv/vm images/web1.qcow2") is local
    assert not locks.locked_locally(mounts, "/srv/vm images2/web1.qcow2")
    inner = [*mounts, "41 40 8:2 / /srv/vm\\040images/local rw - ext4 /dev/sdb1 rw\n"]
    assert not locks.locked_locally(inner, "/srv/vm images/local/web1.qcow2")
