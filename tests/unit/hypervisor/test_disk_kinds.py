# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every kind of disk that libvirt's schema knows has a row, in the engine and in the documentation."""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import pytest
import samples
from lab.cache import CACHE_VARIABLE, DEFAULT_CACHE
from samples import plan_of

from _cbt.errors import Refused
from _cbt.hypervisor.connection import Session, libvirt
from _cbt.hypervisor.domain import DomainFacts, _in_threads, located
from _cbt.hypervisor.domain_xml import disk_kinds
from _cbt.hypervisor.domain_xml.disks import Disk, parse_disks, with_block_nodes
from _cbt.hypervisor.offline_export import require_images
from _cbt.operations.backup.plan import Situation

SCHEMAS = Path("/usr/share/libvirt/schemas")
# libvirt 11, in the tree that the lab keeps (lab.tree).
NEWER_SCHEMAS = Path(os.environ.get(CACHE_VARIABLE, DEFAULT_CACHE), "trixie/usr/share/libvirt/schemas")
PAGE = Path(__file__).resolve().parents[3] / "docs/reading-disks.md"
NG = "{http://relaxng.org/ns/structure/1.0}"
HOST = "<host name='server' port='3260'/>"
ADDRESS = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"

# Type or protocol, ``<source>``, name of the source; whether it is read running and shut off.
READ, THROUGH, NEVER = (True, True), (True, False), (False, False)
ROWS: dict[str, tuple[str, str, tuple[bool, bool]]] = {
    "file": ("<source file='IMAGE'/>", "IMAGE", READ),
    "block": ("<source dev='IMAGE'/>", "IMAGE", READ),
    "volume": ("<source pool='p' volume='v'/>", "p/v", THROUGH),
    "nvme": (
        f"<source type='pci' managed='yes' namespace='1'>{ADDRESS}</source>",
        "nvme:0x0000:0x01:0x00:0x0:1",
        THROUGH,
    ),
    "dir": ("<source dir='/d'/>", "/d", NEVER),
    "vhostuser": ("<source type='unix' path='/run/v.sock'/>", "/run/v.sock", NEVER),
    "vhostvdpa": ("<source dev='/dev/vhost-vdpa-0'/>", "/dev/vhost-vdpa-0", NEVER),
    **{
        protocol: (f"<source protocol='{protocol}' name='n'>{HOST}</source>", f"{protocol}:n", THROUGH)
        for protocol in (
            *("ftp", "ftps", "gluster", "http", "https", "iscsi", "nbd", "nfs", "rbd", "sheepdog", "ssh"),
            *("tftp", "vxhs"),
        )
    },
}
TYPES = {name for name, row in ROWS.items() if "protocol=" not in row[0]}
# Sources that have no name, as the default export of an NBD server has none.
NAMELESS = {
    "nbd, socket": (
        "<source protocol='nbd'><host transport='unix' socket='/run/x.sock'/></source>",
        "nbd:unix:/run/x.sock",
    ),
    "nbd, address": ("<source protocol='nbd' tls='no' index='1'><host name='h' port='10809'/></source>", "nbd:h:10809"),
    "rbd without anything": ("<source protocol='rbd'/>", "rbd:"),
    "empty name": (f"<source protocol='nbd' name=''>{HOST}</source>", "nbd:server:3260"),
}
FORMATS = {  # as far as libvirt starts domains with them
    **dict.fromkeys(("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "bochs", "cloop", "dmg"), READ),
    **dict.fromkeys(("ploop", "vhd"), NEVER),
}
REFUSED_BY_LIBVIRT = {"cow", "dir", "fat", "iso", "luks"}  # as the format of a disk that is no folder
LAYERS = {
    "encryption in the source": "<source file='IMAGE'><encryption format='luks'/></source>",
    "encryption of the disk": "<source file='IMAGE'/><encryption format='luks'/>",
    "slice": "<source file='IMAGE'><slices><slice type='storage' offset='0' size='512'/></slices></source>",
    "data file": "<source file='IMAGE'><dataStore type='file'><format type='raw'/></dataStore></source>",
    "file descriptors": "<source file='IMAGE' fdgroup='g'/>",
    **{
        f"{name} of a backing file": "<source file='IMAGE'/>"
        f"<backingStore type='file'><format type='qcow2'/><source file='/m'/>"
        f"<backingStore type='file'><format type='raw'/>{lowest}<backingStore/></backingStore></backingStore>"
        for name, lowest in {
            "encryption": "<source file='/b'><encryption format='luks'/></source>",
            "slice": "<source file='/b'><slices><slice type='storage' offset='0' size='512'/></slices></source>",
            "data file": "<source file='/b'><dataStore type='file'><format type='raw'/></dataStore></source>",
            "file descriptors": "<source file='/b' fdgroup='g'/>",
        }.items()
    },
}
ASIDE = {  # does not change what is read, or how
    "label": "<source file='IMAGE'><seclabel model='dac' relabel='no'/></source>",
    "startup policy": "<source file='IMAGE' startupPolicy='optional'/>",
    "limits": "<source file='IMAGE'/><iotune><total_bytes_sec>1</total_bytes_sec></iotune>",
    "shareable": "<source file='IMAGE'/><shareable/>",
}

# What else the definition of a disk may have, by why it does not change how the bytes of its image are read.
DETAILS = {
    "how the image is found: disk_kinds.named_source and named_backing": "@type source backingStore source/@file"
    " source/@dev source/@dir source/@path source/@pool source/@volume source/@protocol source/@name source/@namespace"
    " source/@type source/host source/address",
    "the format, and what makes a disk one that is left out": "driver driver/@type @device target target/@bus transient"
    " readonly shareable source/@startupPolicy",
    "more of a source that is always read through the domain": "source/@managed source/@mode source/@query"
    " source/@tls source/@tlsHostname source/auth source/config source/cookies source/identity source/initiator"
    " source/knownHosts source/readahead source/reconnect source/snapshot source/ssl source/timeout auth",
    "who may open the image, and where it is in QEMU": "source/seclabel source/reservations source/@index @snapshot"
    " backenddomain",
    "when and how QEMU reads and writes": "driver/@name driver/@cache driver/@copy_on_read driver/@detect_zeroes"
    " driver/@discard driver/@discard_no_unref driver/@error_policy driver/@io driver/@rerror_policy"
    " driver/metadata_cache iotune throttlefilters",
    "the device that the guest has": "@model @rawio @sgio acpi address alias blockio boot geometry product serial vendor"
    " wwn target/@dev target/@removable target/@rotation_rate target/@tray transient/@shareBacking driver/@ats"
    " driver/@event_idx driver/@ioeventfd driver/@iommu driver/@iothread driver/@packed driver/@page_per_vq"
    " driver/@queue_size driver/@queues driver/iothreads",
    "a block job, which a backup refuses": "mirror",
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    made.write_bytes(bytes(512))
    return made


def element(kind: str, source: str, fmt: str = "raw", device: str = "disk", bus: str = "virtio") -> str:
    """A disk of a definition."""
    given = kind if kind in TYPES else "network"
    return f"<disk type='{given}' device='{device}'><driver name='qemu' type='{fmt}'/>{source}<target dev='vdb' bus='{bus}'/></disk>"


def domain(*elements: str) -> str:
    return f"<domain><devices>{''.join(elements)}</devices></domain>"


def parsed(xml: str) -> Disk:
    (found,) = parse_disks(domain(xml))
    return found


def facts(disk: Disk, active: bool) -> DomainFacts:
    """A domain with this disk and a plain one."""
    plain = Disk("vda", format="raw", source=str(PAGE))
    return dataclasses.replace(samples.facts(plain, disk), active=active)


def read(disk: Disk, active: bool) -> bool:
    """Return whether the disk is read with the one beside it. If not, a warning or an error names it."""
    plan = plan_of(Situation(facts(disk, active), (), (), "cbt-"))
    if disk.target not in plan.targets:
        assert f"{disk.target} " in " ".join(plan.warnings)
        return False
    if active:
        return True
    try:
        require_images(facts(disk, active), plan.targets)
    except Refused as error:
        assert "start_paused" in str(error) and disk.target in str(error)
        return False
    return True


@pytest.mark.parametrize("active", [True, False], ids=["running", "shut off"])
@pytest.mark.parametrize("kind", ROWS)
def test_a_disk_of_every_kind_is_read_or_reported(kind: str, active: bool, image: Path) -> None:
    source, name, outcome = ROWS[kind]
    disk = parsed(element(kind, source.replace("IMAGE", str(image))))
    assert disk.source == name.replace("IMAGE", str(image))
    assert read(disk, active) == outcome[not active]


@pytest.mark.parametrize(("source", "name"), NAMELESS.values(), ids=NAMELESS.keys())
def test_a_source_without_a_name_is_a_medium(source: str, name: str) -> None:
    disk = parsed(element("network", source))
    assert (disk.source, read(disk, True), read(disk, False)) == (name, True, False)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_disk_of_every_format_is_read_or_reported(fmt: str, image: Path) -> None:
    disk = parsed(element("file", f"<source file='{image}'/>", fmt))
    assert (read(disk, True), read(disk, False)) == FORMATS[fmt]


@pytest.mark.parametrize("source", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_disk_that_only_libvirt_can_read_is_refused_while_shut_off(fmt: str, source: str, image: Path) -> None:
    disk = parsed(element("file", source.replace("IMAGE", str(image)), fmt))
    assert (read(disk, True), read(disk, False)) == THROUGH


@pytest.mark.parametrize("source", ASIDE.values(), ids=ASIDE.keys())
def test_the_rest_of_a_definition_changes_nothing(source: str, image: Path) -> None:
    disk = parsed(element("file", source.replace("IMAGE", str(image))))
    assert disk.layers == () and (read(disk, True), read(disk, False)) == READ


LEFT_OUT = {
    "passed through": element("file", "<source file='/x'/>", device="lun"),
    "SD card": element("file", "<source file='/x'/>", bus="sd"),
    "transient": element("file", "<source file='/x'/><transient/>"),
    "no medium": element("file", ""),
    "floppy": element("file", "<source file='/x'/>", device="floppy", bus="fdc"),
}
PASSED_OVER = {
    "CD-ROM": element("file", "<source file='/x'/>", device="cdrom"),
    "empty CD-ROM": element("file", "", device="cdrom"),
    "empty floppy drive": element("file", "", device="floppy"),
    "read-only floppy": element("file", "<source file='/x'/><readonly/>", device="floppy"),
}


@pytest.mark.parametrize("xml", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_a_disk_that_is_left_out_is_in_the_warnings(xml: str) -> None:
    for active in (True, False):
        assert not read(parsed(xml), active)


@pytest.mark.parametrize("xml", PASSED_OVER.values(), ids=PASSED_OVER.keys())
def test_a_drive_without_data_of_the_guest_is_left_out_without_a_warning(xml: str) -> None:
    plan = plan_of(Situation(facts(parsed(xml), True), (), (), "cbt-"))
    assert plan.targets == ("vda",) and "vdb" not in " ".join(plan.warnings)


def schema(name: str, folder: Path = SCHEMAS) -> ElementTree.Element:
    path = folder / name
    if not path.exists():
        pytest.skip(f"not there: {path}, which comes with libvirt")
    return ElementTree.parse(path).getroot()


def values(pattern: ElementTree.Element) -> set[str]:
    return {value.text or "" for value in pattern.iter(f"{NG}value")}


def definitions(prefix: str) -> list[ElementTree.Element]:
    root = schema("domaincommon.rng")
    return [each for each in root.iter(f"{NG}define") if each.get("name", "").startswith(prefix)]


def test_every_type_and_protocol_of_the_schema_of_libvirt_has_a_row() -> None:
    found = definitions("diskSource")
    types = {
        value
        for each in found
        for attribute in (*each.findall(f"{NG}attribute[@name='type']"), *each.findall(f"{NG}optional/{NG}attribute"))
        for value in values(attribute)
    }
    protocols = {
        value
        for each in found
        for attribute in each.iterfind(f".//{NG}attribute[@name='protocol']")
        for value in values(attribute)
    }
    assert {"file", "block", "network", "nvme"} <= types and {"nbd", "rbd", "iscsi"} <= protocols
    assert types - {"network"} <= TYPES and protocols <= ROWS.keys() - TYPES
    assert disk_kinds.SOURCES.keys() == ROWS.keys()


def test_every_format_of_the_schema_of_libvirt_has_a_row() -> None:
    root = schema("storagecommon.rng")
    found = {
        value
        for each in root.iter(f"{NG}define")
        if each.get("name") in ("storageFormat", "storageFormatBacking")
        for value in values(each)
    }
    assert {"raw", "qcow2", "vmdk"} <= found <= FORMATS.keys() | REFUSED_BY_LIBVIRT


class Grammar:
    """What a schema of libvirt allows in an element."""

    def __init__(self, folder: Path) -> None:
        files = ("basictypes.rng", "storagecommon.rng", "domaincommon.rng", "domainoverrides.rng")
        self._defined: dict[str, list[ElementTree.Element]] = {}
        for each in (each for name in files for each in schema(name, folder).iter(f"{NG}define")):
            self._defined.setdefault(each.get("name", ""), []).append(each)  # a later file adds to an earlier one

    def named(self, name: str) -> list[ElementTree.Element]:
        """The elements that a definition has."""
        return [part for each in self._defined[name] for part in self._parts(each)]

    def inside(self, element: ElementTree.Element) -> t.Iterator[tuple[str, ElementTree.Element]]:
        """Its attributes, each with ``@``, and its children."""
        for part in self._parts(element):
            name = part.get("name")
            assert name, "a name of a pattern is not read"
            yield (f"@{name}" if part.tag == f"{NG}attribute" else name), part

    def _parts(self, pattern: ElementTree.Element, through: tuple[str, ...] = ()) -> t.Iterator[ElementTree.Element]:
        for each in pattern:
            name = each.get("name", "")
            if each.tag in (f"{NG}element", f"{NG}attribute"):
                yield each
            elif each.tag != f"{NG}ref":
                yield from self._parts(each, through)
            elif name not in through and not name.startswith("privateData"):  # of files that only libvirt reads
                for found in self._defined[name]:
                    yield from self._parts(found, (*through, name))


def details(folder: Path) -> set[str]:
    """Attributes and children of a disk, and of those children that say what is opened."""
    grammar = Grammar(folder)
    found = set()
    for disk in grammar.named("disk"):
        for name, part in grammar.inside(disk):
            found.add(name)
            if name in ("source", "driver", "target", "transient"):
                found |= {f"{name}/{inner}" for inner, _part in grammar.inside(part)}
    return found


@pytest.mark.parametrize("folder", [SCHEMAS, NEWER_SCHEMAS], ids=["of this machine", "of the newer Debian"])
def test_every_detail_of_a_disk_in_the_schema_of_libvirt_is_a_layer_or_changes_nothing(folder: Path) -> None:
    """A detail of a newer libvirt is to be judged: does QEMU alone then read other bytes than the guest?"""
    harmless = {name for names in DETAILS.values() for name in names.split()}
    found = details(folder)
    assert {"source", "source/@file", "source/slices", "driver/@type", "encryption"} <= found
    layers = {name for name in found if name.rpartition("/")[2].lstrip("@") in disk_kinds.LAYERS}
    assert found - layers - harmless == set() == layers & harmless
    if folder == NEWER_SCHEMAS:
        assert harmless - found == set() and {name.rpartition("/")[2].lstrip("@") for name in layers} == set(
            disk_kinds.LAYERS
        )


def test_the_documentation_has_the_same_rows() -> None:
    """Each row begins with the words of the definition, in code."""
    rows = {
        name: (words[1].strip() != "left out", words[2].strip() == "read")
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `") and len(words := line[1:-1].split("|")) == 4
        for name in re.findall(r"`([a-z0-9]+)`", words[0])
    }
    expected = {name: row[2] for name, row in ROWS.items()} | FORMATS | dict.fromkeys(("encryption", "slices"), THROUGH)
    assert {name: rows.get(name) for name in expected} == expected


@pytest.mark.parametrize("layer", ["format", "slice-sto", "storage"])
def test_the_size_is_that_of_the_node_that_the_guest_uses(layer: str) -> None:
    """Newer versions of libvirt leave out the format of RAW images, so a slice is on top."""
    order = ["format", "slice-sto", "storage"]
    nodes = [{"node-name": f"libvirt-1-{name}", "image": {"virtual-size": 7}} for name in order]
    nodes = [{**node, "image": {"virtual-size": 5}} if node["node-name"].endswith(layer) else node for node in nodes]
    (disk,) = with_block_nodes([Disk("vda", node="libvirt-1")], nodes[order.index(layer) :])
    assert disk.virtual_size == 5


SCSI = (
    "<disk type='file'><source file='/x'/><target dev='sda' bus='scsi'/><address type='drive' controller='{}'/></disk>"
)
CONTROLLERS = (
    "<controller type='scsi' index='0'><driver queues='2'/></controller>"
    "<controller type='scsi' index='1'><driver iothread='1'/></controller>"
    "<controller type='scsi' index='2'><driver><iothreads><iothread id='1'/></iothreads></driver></controller>"
    "<controller type='usb' index='0'><driver iothread='1'/></controller>"
)
THREADS = {  # a disk, and whether it is in an I/O thread
    "plain": (element("file", "<source file='/x'/>"), False),
    "virtio": (element("file", "<source file='/x'/>").replace("type='raw'", "type='raw' iothread='2'"), True),
    "virtio, several": (
        "<disk type='file'><driver><iothreads><iothread id='1'/></iothreads></driver><source file='/x'/></disk>",
        True,
    ),
    "SCSI": (SCSI.format(0), False),
    "SCSI, of the controller": (SCSI.format(1), True),
    "SCSI, several of the controller": (SCSI.format(2), True),
}


@pytest.mark.parametrize(("xml", "expected"), THREADS.values(), ids=THREADS.keys())
def test_disks_in_threads_are_known(xml: str, expected: bool) -> None:
    (found,) = parse_disks(domain(xml, CONTROLLERS))
    assert found.threaded == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [((6, 2, 0), False), ((7, 2, 22), False), ((8, 2, 2), False), ((8, 2, 3), True), ((10, 0, 0), True)],
)
def test_a_disk_in_a_thread_is_left_out_if_qemu_could_crash(version: tuple[int, int, int], expected: bool) -> None:
    disks = parse_disks(domain(THREADS["virtio"][0]))
    (found,) = _in_threads(disks, dict(zip(("major", "minor", "micro"), version)))
    assert read(found, True) == expected
    assert "I/O thread" not in (disks[0].why_unreadable or "")  # while the domain is shut off


class Pool:
    """A connection to libvirt with one pool, ``p``, that has one volume, ``v``."""

    def __init__(self, kind: int | None, path: str) -> None:
        self.kind, self._path, self.api = kind, path, self

    def storagePoolLookupByName(self, name: str) -> Pool:  # noqa: N802  # libvirt's name
        if name != "p":
            raise libvirt.libvirtError("no pool")
        return self

    def storageVolLookupByName(self, name: str) -> Pool:  # noqa: N802  # libvirt's name
        if self.kind is None or name != "v":
            raise libvirt.libvirtError("no volume, or the pool is stopped")
        return self

    def info(self) -> list[int | None]:
        return [self.kind, 0, 0]

    def path(self) -> str:
        return self._path


VOLUMES = {  # the kind that libvirt reports, and its path; type and source of the disk
    "file": (libvirt.VIR_STORAGE_VOL_FILE, "/pool/v", ("file", "/pool/v")),
    "device": (libvirt.VIR_STORAGE_VOL_BLOCK, "/dev/vg/v", ("block", "/dev/vg/v")),
    "folder": (libvirt.VIR_STORAGE_VOL_DIR, "/pool/v", ("volume", "p/v")),
    "on the network": (libvirt.VIR_STORAGE_VOL_NETWORK, "pool/v", ("volume", "p/v")),
    "missing": (None, "", ("volume", "p/v")),
}


@pytest.mark.parametrize(("kind", "path", "expected"), VOLUMES.values(), ids=VOLUMES.keys())
def test_a_volume_is_the_file_or_device_that_libvirt_names(
    kind: int | None, path: str, expected: tuple[str, str]
) -> None:
    disk = parsed(element("volume", ROWS["volume"][0]))
    found = located(t.cast(Session, Pool(kind, path)), disk)
    assert (found.type, found.source) == expected and found.target == disk.target
    other = parsed(element("volume", "<source pool='q' volume='v'/>"))
    assert located(t.cast(Session, Pool(kind, path)), other) == other


BELOW = {  # backing files of the definition, and of the image; data file; what is below
    "unknown": ((), None, None, None),
    "partly named": ((("raw", "/b"),), None, None, None),
    "alone": ((("", ""),), None, None, []),
    "named": ((("qcow2", "/b"), ("raw", "/c"), ("", "")), None, None, ["qcow2:/b", "raw:/c"]),
    "of the image": ((), (("raw", "/b"),), None, ["raw:/b"]),
    "partly named, of the image": ((("raw", "/b"),), (("raw", "/b"), ("raw", "/c")), None, ["raw:/b", "raw:/c"]),
    "data file": ((("raw", "/b"), ("", "")), None, "/d", ["/d", "raw:/b"]),
}


@pytest.mark.parametrize(("backing", "chain", "data", "expected"), BELOW.values(), ids=BELOW.keys())
def test_what_is_below_an_image_is_known_or_unknown(
    backing: tuple[tuple[str, str], ...],
    chain: tuple[tuple[str, str], ...] | None,
    data: str | None,
    expected: list[str] | None,
) -> None:
    image = {"format-specific": {"data": {"data-file": data}}} if data else {}
    assert Disk("vda", backing=backing, chain=chain, image=image).below == expected


CHAINS = {
    "nothing named": ("", ()),
    "ends here": ("<backingStore/>", (("", ""),)),
    "one": (
        "<backingStore type='file'><format type='qcow2'/><source file='/b'/></backingStore>",
        (("qcow2", "/b"),),
    ),
    "all": (
        "<backingStore type='block'><format type='raw'/><source dev='/b'/><backingStore/></backingStore>",
        (("raw", "/b"), ("", "")),
    ),
    "on the network": (
        "<backingStore type='network'><format type='raw'/><source protocol='nbd' name='x'/><backingStore/></backingStore>",
        (("raw", "elsewhere"), ("", "")),
    ),
}


@pytest.mark.parametrize(("xml", "expected"), CHAINS.values(), ids=CHAINS.keys())
def test_the_backing_files_of_a_definition_are_read(xml: str, expected: tuple[tuple[str, str], ...]) -> None:
    assert parsed(element("file", f"<source file='/x'/>{xml}")).backing == expected


def test_a_missing_image_is_refused_with_advice() -> None:
    with pytest.raises(Refused, match="vdb has no image at /nowhere. Put it back, or leave the disk out"):
        require_images(facts(Disk("vdb", source="/nowhere"), False), ("vdb",))


def test_a_disk_that_the_running_domain_lacks_is_in_the_warnings() -> None:
    """libvirt starts a domain without a disk whose startup policy is optional and whose image is missing."""
    found = facts(Disk("vdb", source="/x"), True)
    inactive = domain(element("file", "<source file='/x'/>").replace("vdb", "vdc"), PASSED_OVER["CD-ROM"])
    plan = plan_of(Situation(dataclasses.replace(found, inactive_xml=inactive), (), (), "cbt-"))
    assert [each for each in plan.warnings if "vdc" in each] == [
        "vdc is in the definition of web1 but not in the running domain, so it is left out. Restart the domain."
    ]


@pytest.mark.parametrize("plain", [True, False])
def test_plain_text_of_an_encrypted_disk_in_a_plain_repository_is_in_the_warnings(plain: bool) -> None:
    disk = parsed(element("file", LAYERS["encryption in the source"]))
    plan = plan_of(Situation(facts(disk, True), (), (), "cbt-", plain=plain))
    assert any("plain text" in each for each in plan.warnings) == plain


def test_a_shareable_disk_is_in_the_warnings() -> None:
    plan = plan_of(Situation(facts(parsed(element("file", ASIDE["shareable"])), True), (), (), "cbt-"))
    assert [each for each in plan.warnings if "writes of other domains" in each] != []
