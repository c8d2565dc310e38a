# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The details of a listed domain, from its XML and with libvirt's test driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from libvirt_test_host import BARE, empty_host

from _cbt.hypervisor.connection import Domain, Session
from _cbt.hypervisor.domain_xml.description import describe
from _cbt.operations import domains
from _cbt.operations.domains import list_domains

libvirt = pytest.importorskip("libvirt")

PLAN, OTHER = "https://example.com/backup", "urn:other"
METADATA = f"""
  <metadata xmlns:o='{OTHER}'>
    <b:plan xmlns:b='{PLAN}' name='gold'>
      <b:day>Mon &amp; Tue</b:day>
    </b:plan>
    <o:owner>someone</o:owner>
  </metadata>
"""
DEFINITION = f"""
<domain type='test'>
  <name>web1</name>
  <title>Shop "front" &lt;end&gt;</title>
  <description>Two
lines, and ünicode</description>
  {METADATA}
  <memory>1024</memory>
  <os><type>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/none/web1.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'><source dev='/dev/none'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='volume' device='disk'>
      <driver type='raw'/><source pool='default' volume='data'/><target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver type='raw'/><source protocol='rbd' name='pool/image'><host name='ceph1'/></source>
      <target dev='vdd' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
  </devices>
</domain>
"""
DISKS = [
    ("vda", "disk", "file", "/none/web1.qcow2", "qcow2"),
    ("vdb", "disk", "block", "/dev/none", "raw"),
    ("vdc", "disk", "volume", "default/data", "raw"),
    ("vdd", "disk", "network", "rbd:pool/image", "raw"),
    ("sda", "cdrom", "file", None, "raw"),
]


@pytest.fixture
def session() -> Iterator[Session]:
    """A host without domains."""
    with empty_host() as opened:
        yield opened


def detailed(session: Session) -> list[Any]:
    """The listing with details, as a module prints it."""
    listed: list[Any] = json.loads(json.dumps(list_domains(session, ["*"], [], details=True).domains))
    return listed


def test_all_details_of_a_definition_are_listed(session: Session) -> None:
    made = session.api.defineXML(DEFINITION)
    made.setAutostart(1)
    (listed,) = detailed(session)
    metadata = {namespace: ElementTree.fromstring(text) for namespace, text in listed.pop("metadata").items()}
    disks = listed.pop("disks")
    assert listed == {
        "name": "web1",
        "uuid": made.UUIDString(),
        "state": "shutoff",
        "title": 'Shop "front" <end>',
        "description": "Two\nlines, and ünicode",
        "persistent": True,
        "autostart": True,
    }
    assert set(metadata) == {PLAN, OTHER}
    assert (metadata[PLAN].tag, metadata[PLAN].get("name"), metadata[PLAN].findtext("day")) == (
        "plan",
        "gold",
        "Mon & Tue",
    )
    assert metadata[OTHER].text == "someone"
    assert [tuple(disk[key] for key in ("target", "device", "type", "source", "format")) for disk in disks] == DISKS


@pytest.mark.parametrize("namespace", [PLAN, OTHER])
def test_metadata_are_those_that_libvirt_returns_for_their_namespace(session: Session, namespace: str) -> None:
    made = session.api.defineXML(DEFINITION)
    (listed,) = detailed(session)
    theirs = made.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, namespace)
    ours = listed["metadata"][namespace]
    assert ElementTree.canonicalize(ours, strip_text=True) == ElementTree.canonicalize(theirs, strip_text=True)
    assert ours == ours.strip()


def test_a_domain_without_details_has_empty_ones(session: Session) -> None:
    session.api.defineXML(BARE.format(name="bare"))
    (listed,) = detailed(session)
    shown = {key: listed[key] for key in listed if key not in ("name", "uuid", "state")}
    nothing = {"title": "", "description": "", "metadata": {}, "disks": []}
    assert shown == {**nothing, "persistent": True, "autostart": False}


def test_a_transient_domain_is_listed(session: Session) -> None:
    session.api.createXML(DEFINITION)
    (listed,) = detailed(session)
    assert (listed["state"], listed["persistent"], listed["autostart"]) == ("running", False, False)
    assert listed["title"] and [disk["target"] for disk in listed["disks"]] == [disk[0] for disk in DISKS]


def test_a_running_domain_is_described_as_it_is_defined(session: Session) -> None:
    session.api.defineXML(DEFINITION).create()
    for title, where in (("now", libvirt.VIR_DOMAIN_AFFECT_LIVE), ("next", libvirt.VIR_DOMAIN_AFFECT_CONFIG)):
        session.domain("web1").api.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, title, None, None, where)
    (listed,) = detailed(session)
    assert (listed["state"], listed["title"]) == ("running", "next")


def test_a_domain_undefined_after_its_state_was_read_is_left_out(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "stays"):
        session.api.defineXML(BARE.format(name=name))
    real = domains.state_of

    def read_too_early(domain: Domain) -> str | None:
        state = real(domain)
        if domain.name == "gone":
            domain.api.undefine()
        return state

    monkeypatch.setattr(domains, "state_of", read_too_early)
    listing = list_domains(session, ["gone", "stays"], [], details=True)
    assert ([each["name"] for each in listing.domains], listing.missing) == (["stays"], ("gone",))


def test_without_details_a_domain_is_listed_by_name_uuid_and_state(session: Session) -> None:
    made = session.api.defineXML(DEFINITION)
    listed = {"name": "web1", "uuid": made.UUIDString(), "state": "shutoff"}
    assert list_domains(session, ["*"], []).domains == (listed,)


def test_metadata_keep_the_names_of_other_namespaces_and_an_element_without_one() -> None:
    """libvirt itself drops an element without a namespace."""
    assert describe("<domain><metadata><a>1</a> </metadata></domain>").metadata == {"": "<a>1</a>"}
    mixed = "<a xmlns='urn:a'><b xmlns='urn:b'/><c/></a>"
    (text,) = describe(f"<domain><metadata>{mixed}</metadata></domain>").metadata.values()
    assert [each.tag for each in ElementTree.fromstring(text).iter()] == ["a", "{urn:b}b", "c"]
