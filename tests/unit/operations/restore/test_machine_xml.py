# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trusted configuration adapted to where and as what a machine comes back. What is taken of any other: ``test_allowed_definitions.py``."""

from __future__ import annotations

import typing as t
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import UUID, target_machine

from _cbt.operations.restore.machine_xml import AdaptedXml, DiskTarget, adapt

OTHER = "b9a7f3d0-1111-4222-8333-444455556666"
VDA = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/vda'/><target dev='vda'/></disk>"


def xml_of(devices: str = VDA, system: str = "<os><type>hvm</type></os>", extra: str = "") -> str:
    return f"<domain type='kvm' id='7'><name>web1</name><uuid>{UUID}</uuid>{extra}{system}<devices>{devices}</devices></domain>"


def adapted(xml: str, copy: bool = False, present: t.Collection[str] = (), **fields: t.Any) -> AdaptedXml:
    identity = {"name": "web2", "uuid": OTHER} if copy else {}
    wanted = target_machine("/new/vda.qcow2", **{"trusted": True, **identity, **fields})
    return adapt(xml, wanted, lambda path: path in present)


def devices_of(found: AdaptedXml) -> list[str]:
    """The devices as text, one each."""
    devices = ElementTree.fromstring(found.xml).find("devices")
    assert devices is not None
    return [ElementTree.tostring(each, encoding="unicode") for each in devices]


def canonical(device: str) -> str:
    return ElementTree.tostring(ElementTree.fromstring(device), encoding="unicode")


def test_a_machine_that_comes_back_as_it_was_differs_in_the_paths_of_its_disks_alone() -> None:
    xml = xml_of(
        VDA
        + "<interface type='network'><mac address='52:54:00:00:00:01'/></interface><graphics type='vnc' port='5901' passwd='secret'/>"
        "<serial type='file'><source path='/log'/></serial><filesystem><source dir='/share'/></filesystem>",
        extra="<metadata><a:b xmlns:a='urn:x'>kept</a:b></metadata>",
    )
    found = adapted(xml)
    expected = xml.replace(" id='7'", "").replace("/old/vda", "/new/vda.qcow2")
    assert ElementTree.canonicalize(found.xml, rewrite_prefixes=True) == ElementTree.canonicalize(
        expected, rewrite_prefixes=True
    )
    assert found.changes == ()


DISKS = {
    "backing files and a mirror go": (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/vda' index='3'><dataStore type='file'/></source>"
        "<backingStore type='file'><format type='raw'/><source file='/base'/></backingStore><mirror type='file'/><target dev='vda'/></disk>",
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/new/vda.qcow2'/><target dev='vda'/></disk>",
    ),
    "a volume becomes a file": (
        "<disk type='volume' device='disk'><driver name='qemu' type='raw' cache='none'/><source pool='p' volume='v'/><target dev='vda' bus='scsi'/></disk>",
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='/new/vda.qcow2'/><target dev='vda' bus='scsi'/></disk>",
    ),
    "a network disk becomes a file": (
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><auth username='a'/><source protocol='rbd' name='p/i'><auth username='a'/></source>"
        "<target dev='vda'/></disk>",
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/new/vda.qcow2'/><target dev='vda'/></disk>",
    ),
    "a disk without driver gets one": (
        "<disk type='file' device='disk'><source file='/old/vda'/><target dev='vda'/><serial>7</serial></disk>",
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/new/vda.qcow2'/><target dev='vda'/><serial>7</serial></disk>",
    ),
    "a shared disk is its own": (
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/old/vda'/><target dev='vda'/><shareable/></disk>",
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/new/vda.qcow2'/><target dev='vda'/></disk>",
    ),
}


@pytest.mark.parametrize(("before", "after"), DISKS.values(), ids=DISKS.keys())
def test_a_restored_disk_names_its_image_and_nothing_of_the_old_one(before: str, after: str) -> None:
    found = adapted(xml_of(before))
    assert devices_of(found) == [canonical(after)]
    assert found.changes == ()


def test_a_disk_on_a_device_is_reported_as_such() -> None:
    found = adapted(xml_of(), disks={"vda": DiskTarget("/dev/vg/web1", "raw", device=True)})
    assert devices_of(found) == [
        canonical(
            "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/web1'/><target dev='vda'/></disk>"
        )
    ]


def test_an_encrypted_disk_is_reported_as_restored_plain() -> None:
    disk = VDA.replace("<target", "<encryption format='luks'><secret type='passphrase' uuid='x'/></encryption><target")
    found = adapted(xml_of(disk))
    assert "encryption" not in found.xml
    assert found.changes == ("vda was an encrypted image and is a plain one now.",)


CDROM = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/a.iso'/><target dev='sda'/><readonly/></disk>"
FLOPPY = CDROM.replace("cdrom", "floppy").replace("/a.iso", "/a.img")
# devices, whether it is a copy, paths that exist, what must be left of the text, what must be gone, changes
REMOVED: dict[str, tuple[str, bool, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "a disk that is not restored": (
        VDA.replace("vda", "vdb"),
        False,
        ("/old/vdb",),
        (),
        ("/old/vdb",),
        ("vdb is not part of this restore and was removed.",),
    ),
    "a medium that is there": (CDROM, True, ("/a.iso",), ("/a.iso",), (), ()),
    "a medium that is not there": (
        CDROM,
        False,
        (),
        ("cdrom",),
        ("/a.iso",),
        ("sda is empty: /a.iso is not on this host.",),
    ),
    "a medium in a pool": (
        CDROM.replace("type='file' device", "type='volume' device").replace("file='/a.iso'", "pool='p' volume='v.iso'"),
        False,
        (),
        ("cdrom",),
        ("v.iso",),
        ("sda is empty: v.iso is not on this host.",),
    ),
    "an empty drive": (CDROM.replace("<source file='/a.iso'/>", ""), True, (), ("cdrom",), (), ()),
    "a floppy of the same machine": (FLOPPY, False, ("/a.img",), ("/a.img",), (), ()),
    "a floppy of a copy": (
        FLOPPY,
        True,
        ("/a.img",),
        ("floppy",),
        ("/a.img",),
        ("sda is empty: /a.img stays with the original.",),
    ),
    "a device of another host": (
        "<hostdev mode='subsystem' type='pci'/>",
        False,
        (),
        (),
        ("hostdev",),
        ("A device passed through from the host (hostdev) was removed.",),
    ),
    "an interface of another host": (
        "<interface type='hostdev'/>",
        False,
        (),
        (),
        ("hostdev",),
        ("A device passed through from the host (interface) was removed.",),
    ),
    "a TPM of the host": (
        "<tpm><backend type='passthrough'/></tpm>",
        True,
        (),
        (),
        ("<tpm",),
        ("A device passed through from the host (tpm) was removed.",),
    ),
    "an emulated TPM": ("<tpm><backend type='emulator'/></tpm>", True, (), ("<tpm",), (), ()),
    "an emulator that is not here": (
        "<emulator>/x/qemu</emulator>",
        False,
        (),
        (),
        ("/x/qemu",),
        ("The emulator /x/qemu is not on this host: libvirt chooses one.",),
    ),
    "an emulator that is here": ("<emulator>/x/qemu</emulator>", True, ("/x/qemu",), ("/x/qemu",), (), ()),
    "a folder shared with the guest": (
        "<filesystem><source dir='/share'/></filesystem>",
        True,
        ("/share",),
        (),
        ("/share",),
        ("A filesystem was removed: the copy would share it with the original.",),
    ),
    "a memory device in a file": (
        "<memory model='nvdimm'><source><path>/nv</path></source></memory>",
        True,
        ("/nv",),
        (),
        ("/nv",),
        ("A memory device kept in a file was removed: the copy would share it with the original.",),
    ),
    "a memory device": ("<memory model='dimm'/>", True, (), ("dimm",), (), ()),
    "a console in a file": (
        "<serial type='file'><source path='/c.log'/><log file='/l'/><target port='0'/></serial>",
        True,
        (),
        ('type="pty"', 'port="0"'),
        ("/c.log", "/l"),
        ("A serial of type file became a pty: the copy would share it with the original.",),
    ),
    "an agent's socket": (
        "<channel type='unix'><source mode='bind' path='/s'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
        True,
        (),
        ("org.qemu.guest_agent.0",),
        ("/s",),
        (),
    ),
    "a fixed port": (
        "<graphics type='vnc' port='5901' autoport='no' passwd='secret'/>",
        True,
        (),
        ("secret", 'autoport="yes"'),
        ("5901",),
        (),
    ),
    "a display's socket": (
        "<graphics type='vnc'><listen type='socket' socket='/display'/></graphics>",
        True,
        (),
        ('type="socket"',),
        ("/display",),
        (),
    ),
    "a named network device": (
        "<interface type='bridge'><source bridge='br0'/><target dev='tap1'/></interface>",
        True,
        (),
        ("br0",),
        ("tap1",),
        (),
    ),
    "a socket address": ("<vsock><cid auto='no' address='3'/></vsock>", True, (), ('auto="yes"',), ("address",), ()),
}


@pytest.mark.parametrize(("device", "copy", "present", "kept", "gone", "changes"), REMOVED.values(), ids=REMOVED.keys())
def test_missing_and_shared_resources_are_removed_and_reported(
    device: str,
    copy: bool,
    present: tuple[str, ...],
    kept: tuple[str, ...],
    gone: tuple[str, ...],
    changes: tuple[str, ...],
) -> None:
    found = adapted(xml_of(VDA + device), copy, present)
    assert found.changes == changes
    assert [text for text in kept if text not in found.xml] == []
    assert [text for text in gone if text in found.xml] == []


def test_devices_in_a_second_list_are_adapted_too() -> None:
    more = f"<devices>{VDA.replace('vda', 'vdb')}{VDA.replace('vda', 'vdc')}</devices></domain>"
    found = adapted(xml_of().replace("</domain>", more))
    assert [ElementTree.fromstring(each).find("source").attrib for each in devices_of(found)] == [
        {"file": "/new/vda.qcow2"}
    ]  # type: ignore[union-attr]
    assert found.xml.count("<devices>") == 1 and len(found.changes) == 2


def test_host_devices_stay_where_the_same_machine_comes_back_on_its_host() -> None:
    xml = xml_of(VDA + "<hostdev mode='subsystem' type='pci'/>")
    assert "hostdev" in adapted(xml, keep_host_devices=True).xml
    assert "hostdev" not in adapted(xml, copy=True, keep_host_devices=True).xml


# an interface, and where it is after two networks have been replaced
MAC = "<mac address='52:54:00:00:00:01'/>"
INTERFACES = {
    "of a network": (
        f"<interface type='network'>{MAC}<source network='lan' portgroup='p'/><vlan><tag id='7'/></vlan></interface>",
        "lan2",
    ),
    "of a bridge": (
        f"<interface type='bridge'>{MAC}<source bridge='br0'/><virtualport type='openvswitch'/><target dev='t'/></interface>",
        "bridged",
    ),
    "of another network": (f"<interface type='network'>{MAC}<source network='other'/></interface>", None),
    "of none": (f"<interface type='user'>{MAC}</interface>", None),
}


@pytest.mark.parametrize(("interface", "network"), INTERFACES.values(), ids=INTERFACES.keys())
def test_mapped_interfaces_move_to_their_networks_and_others_keep_theirs(interface: str, network: str | None) -> None:
    found = adapted(xml_of(VDA + interface), networks={"lan": "lan2", "br0": "bridged"})
    expected = (
        interface if network is None else f"<interface type='network'><source network='{network}'/>{MAC}</interface>"
    )
    assert devices_of(found)[1:] == [canonical(expected)]
    assert len(found.changes) == (network is not None)


_ANY_INTERFACE = [
    *(interface for interface, _network in INTERFACES.values()),
    "<interface type='direct'><source dev='eth0' mode='vepa'/><virtualport type='802.1Qbg'/></interface>",
    "<interface type='hostdev' managed='yes'><driver name='vfio'/><source><address type='pci'/></source><teaming type='transient' persistent='u'/></interface>",
    "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>",
    "<interface type='vhostuser'><source type='unix' path='/u'/></interface>",
    "<interface type='ethernet'><script path='/up'/><target dev='t' managed='no'/></interface>",
    "<interface type='user'><backend type='passt'/><portForward proto='tcp'/><ip address='10.0.2.9'/></interface>",
    "<interface type='udp'><source address='10.0.0.1' port='9'/></interface>",
]


@given(st.lists(st.sampled_from(_ANY_INTERFACE), max_size=5), st.booleans())
def test_no_interface_whatever_its_kind_is_left_on_a_network_of_the_original(interfaces: list[str], copy: bool) -> None:
    found = adapted(xml_of(VDA + "".join(interfaces)), copy, networks={"*": "isolated"}, keep_host_devices=True)
    alone, with_address = (
        canonical(f"<interface type='network'><source network='isolated'/>{mac}</interface>") for mac in ("", MAC)
    )
    assert devices_of(found)[1:] == [with_address if MAC in interface else alone for interface in interfaces]


def test_the_identity_changes_everywhere_it_is_written() -> None:
    extra = f"<genid>{UUID}</genid><sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry><entry name='serial'>x</entry></system></sysinfo>"
    macs = "<interface type='network'><mac address='52:54:00:00:00:01'/></interface>"
    found = adapted(xml_of(VDA + macs, extra=extra), copy=True, new_macs=True)
    root = ElementTree.fromstring(found.xml)
    assert (root.findtext("name"), root.findtext("uuid"), root.get("id")) == ("web2", OTHER, None)
    assert UUID not in found.xml and "52:54" not in found.xml
    assert (
        root.findtext("./sysinfo/system/entry[@name='uuid']"),
        root.findtext("./sysinfo/system/entry[@name='serial']"),
    ) == (OTHER, "x")
    assert root.find("genid") is not None
    assert "52:54" in adapted(xml_of(VDA + macs), copy=True).xml


def test_a_machine_that_went_back_in_time_has_another_generation() -> None:
    assert ElementTree.fromstring(adapted(xml_of(extra="<genid>1</genid>")).xml).findtext("genid") == ""


# system, restored files, present paths, what is in the end, changes; all of a copy
SYSTEM = "<os><type>hvm</type><loader type='pflash'>/fw</loader><nvram template='/t'>/old/nv</nvram><kernel>/old/k</kernel></os>"
FIRMWARE: dict[str, tuple[str, dict[str, str], tuple[str, ...], dict[str, str | None], tuple[str, ...]]] = {
    "all restored": (
        SYSTEM,
        {"loader": "/new/fw", "nvram": "/new/nv", "kernel": "/new/k", "tpm": "/var/lib/x"},
        (),
        {"loader": "/new/fw", "nvram": "/new/nv", "kernel": "/new/k", "initrd": None},
        (),
    ),
    "nothing saved": (
        SYSTEM,
        {},
        ("/fw",),
        {"loader": "/fw", "nvram": None, "kernel": "/old/k"},
        (
            "The firmware variables /old/nv were not saved: the firmware starts with new ones.",
            "The kernel /old/k was not saved and is not on this host: the domain will not start without it.",
        ),
    ),
    "firmware chosen by libvirt": (
        "<os firmware='efi'><type>hvm</type></os>",
        {"nvram": "/new/nv", "loader": "/new/fw"},
        (),
        {"loader": None, "nvram": "/new/nv"},
        (),
    ),
    "variables in a source": (
        "<os><type>hvm</type><nvram type='file' format='qcow2'><source file='/old/nv'/></nvram></os>",
        {"nvram": "/new/nv"},
        (),
        {"nvram": "/new/nv"},
        (),
    ),
    "variables on a device": (
        "<os><type>hvm</type><nvram type='block'><source dev='/dev/nv'/></nvram></os>",
        {},
        (),
        {"nvram": None},
        ("The firmware variables block /dev/nv were not saved: the firmware starts with new ones.",),
    ),
    "variables over the network": (
        "<os><type>hvm</type><nvram type='network'><source protocol='iscsi' name='iqn'/></nvram></os>",
        {},
        (),
        {"nvram": None},
        ("The firmware variables network iscsi iqn were not saved: the firmware starts with new ones.",),
    ),
    "a template alone": (
        "<os><type>hvm</type><nvram template='/usr/share/OVMF/V.fd' templateFormat='raw'/></os>",
        {},
        (),
        {"nvram": ""},
        (),
    ),
    "a template in another format": (
        "<os><type>hvm</type><nvram template='/t' templateFormat='raw' format='qcow2'>/old/nv</nvram></os>",
        {"nvram": "/new/nv"},
        (),
        {"nvram": "/new/nv"},
        (),
    ),
    "firmware of QEMU": ("<os><type>hvm</type><loader>bios.bin</loader></os>", {}, (), {"loader": "bios.bin"}, ()),
}


@pytest.mark.parametrize(("system", "files", "present", "paths", "changes"), FIRMWARE.values(), ids=FIRMWARE.keys())
def test_a_copy_starts_from_its_own_files(
    system: str, files: dict[str, str], present: tuple[str, ...], paths: dict[str, str | None], changes: tuple[str, ...]
) -> None:
    found = adapted(xml_of(system=system), True, present, files=files)
    root = ElementTree.fromstring(found.xml)
    assert {kind: root.findtext(f"./os/{kind}") for kind in paths} == paths
    assert found.changes == changes
    assert [each.attrib.get("format") for each in root.iterfind("./os/nvram[@format]")] == (
        ["qcow2"] if "qcow2" in system else []
    )
    assert root.find("./os/nvram[@type]") is None
    assert "/old/nv" not in found.xml


@pytest.mark.parametrize("given", ["template='/t'", "template='/t' templateFormat='qcow2' format='qcow2'"])
def test_the_template_of_variables_stays_with_its_format(given: str) -> None:
    system = f"<os><type>hvm</type><nvram {given}>/old/nv</nvram></os>"
    for copy in (True, False):
        found = adapted(xml_of(system=system), copy, files={"nvram": "/new/nv"})
        assert f"<nvram {given}>/new/nv</nvram>".replace("'", '"') in found.xml


TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>{}</backend></tpm>"


@pytest.mark.parametrize("kind", ["dir", "file"])
def test_a_copy_does_not_share_the_state_of_a_tpm(kind: str) -> None:
    devices = TPM.format(f"<source type='{kind}' path='/state'/>")
    copy, same = (adapted(xml_of(VDA + devices), its) for its in (True, False))
    assert "/state" not in copy.xml and "<tpm " in copy.xml
    assert copy.changes == ("The TPM starts with a new state: /state stays with the original.",)
    assert "/state" in same.xml and same.changes == ()


def test_the_same_machine_without_saved_variables_keeps_their_path() -> None:
    assert "/old/nv" in adapted(xml_of(system=SYSTEM), present=("/fw", "/old/k")).xml


def test_options_handed_to_qemu_stay() -> None:
    extra = "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-s'/></qemu:commandline>"
    assert '<qemu:arg value="-s"' in adapted(xml_of(extra=extra)).xml


_SHARED = {
    "disk": VDA,
    "other disk": VDA.replace("vda", "vdb"),
    "floppy": FLOPPY,
    "console": "<console type='unix'><source mode='bind' path='/c'/></console>",
    "serial": "<serial type='tcp'><source mode='bind' host='::' service='4'/><protocol type='raw'/></serial>",
    "channel": "<channel type='file'><source path='/ch'/></channel>",
    "folder": "<filesystem><source dir='/share'/></filesystem>",
    "memory": "<shmem name='m'/>",
    "lease": "<lease><target path='/lease'/></lease>",
    "user": "<interface type='vhostuser'><source type='unix' path='/u'/></interface>",
    "host": "<hostdev mode='subsystem' type='usb'/>",
    "display": "<graphics type='spice' port='1' tlsPort='2' websocket='3'/>",
}


@given(st.lists(st.sampled_from(sorted(_SHARED)), max_size=20))
def test_nothing_of_the_original_is_left_in_a_copy_whatever_its_devices(names: list[str]) -> None:
    found = adapted(
        xml_of("".join(_SHARED[name] for name in names)), True, ("/old/vdb", "/a.img", "/share", "/lease", "/u")
    )
    left = {
        text
        for each in ElementTree.fromstring(found.xml).iter()
        for text in each.attrib.values()
        if text.startswith("/")
    }
    assert left <= {"/new/vda.qcow2"}
    for gone in ("port=", "tlsPort=", "websocket=", "shmem", "hostdev", "service="):
        assert gone not in found.xml.replace("autoport=", "")
    assert adapted(found.xml, True, files={}).xml.count("<disk") == found.xml.count("<disk")
