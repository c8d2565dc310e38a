# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is taken of a definition from a repository: nothing that reaches out of the guest, and all that an ordinary machine has."""

from __future__ import annotations

import ast
import json
import random
import re
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hostile_definitions import ORDINARY, REACHES, VDA, Ordinary, Reach, definition
from hypothesis import given
from hypothesis import strategies as st
from samples import UUID, target_machine

import _cbt
from _cbt.errors import Refused
from _cbt.hypervisor.allowed import firmware
from _cbt.hypervisor.allowed.filtering import Filtered, filtered
from _cbt.hypervisor.allowed.table import ALLOWED, REFUSED
from _cbt.hypervisor.allowed.values import Host, is_firmware
from _cbt.operations.restore.machine_xml import AdaptedXml, adapt

OTHER = "b9a7f3d0-1111-4222-8333-444455556666"
NEW = "/new/vda.qcow2"
OF_PACKAGES = re.compile(r"/usr/(s?bin|libexec|share)/")


def adapted(xml: str, copy: bool = False, **fields: t.Any) -> AdaptedXml:
    """Adapted without trust; the host is asked about its own programs and firmware alone."""

    def exists(path: str) -> bool:
        assert OF_PACKAGES.match(path), path
        return True

    wanted = target_machine(NEW, uuid=OTHER if copy else UUID, keep_host_devices=True, **fields)
    return adapt(xml, wanted, exists)


def trusted(xml: str) -> AdaptedXml:
    return adapt(xml, target_machine(NEW, trusted=True, keep_host_devices=True), lambda path: True)


def plain(mark: str) -> str:
    """How a message names a mark."""
    return mark.replace('"', "").lstrip("<")


def canonical(root: ElementTree.Element) -> str:
    return ElementTree.canonicalize(
        ElementTree.tostring(root, encoding="unicode"), rewrite_prefixes=True, strip_text=True
    )


# What needs no name, as it is the source of a restored disk or no part of the machine, or is removed from a trusted definition as well.
UNNAMED = ("a source once more", "text between elements")
NEVER = ("a source once more", "a disk that was not restored")


@pytest.mark.parametrize(("name", "reach"), REACHES.items(), ids=REACHES.keys())
def test_a_setting_that_reaches_out_of_the_guest_is_removed_or_refused_and_named(name: str, reach: Reach) -> None:
    if reach.refused:
        with pytest.raises(Refused) as caught:
            adapted(reach.xml)
        said: tuple[str, ...] = (str(caught.value),)
        assert "trust_definition: true" in said[0]
    else:
        found = adapted(reach.xml)
        said = found.changes
        assert [mark for mark in reach.marks if mark in found.xml] == []
    if name == "a disk that was not restored":
        assert said == ("sdb is not part of this restore and was removed.",)
    elif name not in UNNAMED:
        assert any(plain(mark) in line for mark in reach.marks for line in said), said


@pytest.mark.parametrize(("name", "reach"), REACHES.items(), ids=REACHES.keys())
def test_a_trusted_definition_keeps_it(name: str, reach: Reach) -> None:
    found = trusted(reach.xml)
    assert [mark for mark in reach.marks if mark not in found.xml] == list(reach.marks if name in NEVER else ())


@pytest.mark.parametrize(("name", "reach"), REACHES.items(), ids=REACHES.keys())
def test_a_copy_has_no_setting_that_reaches_out_of_the_guest(name: str, reach: Reach) -> None:
    try:
        found = adapted(reach.xml, copy=True)
    except Refused as error:
        assert reach.refused and any(plain(mark) in str(error) for mark in reach.marks)
        return
    assert [mark for mark in reach.marks if mark in found.xml] == []
    assert found.changes or name in UNNAMED, found.xml


def _only(path: str, name: str, value: str) -> ElementTree.Element:
    """A definition that holds one value, and nothing else but what leads to it."""
    root = element = ElementTree.Element("domain")
    for tag in path.split("/") if path != "." else ():
        element = ElementTree.SubElement(element, tag)
    if name == "#":
        element.text = value
    else:
        element.set(name, value)
    return root


@pytest.mark.parametrize("value", ["/etc/shadow", "../etc/shadow", "x/y"])
def test_only_free_text_values_may_contain_a_path(value: str) -> None:
    every = [(path, name, rule.values[name].kind) for path, rule in ALLOWED.items() for name in rule.values]
    kept = {
        kind
        for path, name, kind in every
        if value in ElementTree.tostring(filtered(_only(path, name, value), HOST).root, encoding="unicode")
    }
    assert len(every) > 500 and kept <= {"TEXT", "BASE64", "ZONE", "ADDRESS"}
    starts = {kind for kind in kept if value.startswith(("/", "."))}
    assert starts <= {"TEXT", "BASE64"}


def test_a_refusal_names_all_that_the_machine_needs_at_once() -> None:
    refused = {
        name: reach
        for name, reach in REACHES.items()
        if reach.refused and "once more" not in name and "<os><type" in reach.xml
    }
    devices = "".join(re.findall(f"{re.escape(VDA)}(.*)</devices>", reach.xml)[0] for reach in refused.values())
    system = "".join(re.findall("hvm</type>(.*)</os>", reach.xml)[0] for reach in refused.values())
    with pytest.raises(Refused) as caught:
        adapted(definition(devices, system=system))
    assert {
        name: [mark for mark in reach.marks if mark not in str(caught.value)] for name, reach in refused.items()
    } == dict.fromkeys(refused, [])


@pytest.mark.parametrize("copy", [False, True])
def test_a_host_named_in_a_manifest_does_not_keep_a_host_device(copy: bool) -> None:
    xml = definition("<hostdev mode='subsystem' type='usb'/>")
    if copy:
        found = adapted(xml, copy=True)
        assert "hostdev" not in found.xml and found.changes == (
            "A device passed through from the host (hostdev) was removed.",
        )
    else:
        with pytest.raises(Refused, match="hostdev mode=subsystem type=usb"):
            adapted(xml)


def test_an_interface_that_the_user_connects_elsewhere_is_not_refused() -> None:
    for name in ("a virtual function", "a vDPA device", "a vhost-user socket", "a device of the network by itself"):
        found = adapted(REACHES[name].xml, networks={"*": "lan"})
        assert '<interface type="network"><source network="lan" /></interface>' in found.xml and len(found.changes) == 1


# Ordinary machines.


@pytest.mark.parametrize("ordinary", ORDINARY.values(), ids=ORDINARY.keys())
def test_an_ordinary_machine_is_restored_unchanged(ordinary: Ordinary) -> None:
    found = adapted(ordinary.xml)
    assert found.changes == ordinary.changes
    expected = ElementTree.fromstring(ordinary.xml.replace("/old/vda", NEW))
    genid = expected.find("genid")
    if genid is not None:
        genid.text = ""
    if not ordinary.changes:
        assert canonical(ElementTree.fromstring(found.xml)) == canonical(expected)


@pytest.mark.parametrize(
    "xml", [each.xml for each in (*ORDINARY.values(), *REACHES.values()) if not getattr(each, "refused", False)]
)
def test_adapting_is_idempotent(xml: str) -> None:
    once = adapted(xml)
    assert adapted(once.xml) == AdaptedXml(once.xml, ())


# Files that the machine brings along.

FILES = {
    "kernel": "/new/web1-kernel",
    "initrd": "/new/web1-initrd",
    "dtb": "/new/web1-dtb",
    "loader": "/new/web1-loader",
    "nvram": "/new/web1-nvram",
}
SYSTEM = "<loader type='pflash'>/fw</loader><nvram template='/usr/share/OVMF/V.fd'>/nv</nvram><kernel>/k</kernel><initrd>/i</initrd><dtb>/d</dtb>"


def test_files_that_were_restored_are_the_machines_own() -> None:
    found = adapted(definition(system=SYSTEM), files=FILES)
    root = ElementTree.fromstring(found.xml)
    assert {kind: root.findtext(f"./os/{kind}") for kind in FILES} == FILES and found.changes == ()


def test_a_path_is_handed_on_without_the_white_space_around_it() -> None:
    xml = definition(
        "<emulator> /usr/bin/qemu-system-x86_64\n</emulator>",
        system="<nvram> /var/lib/libvirt/qemu/nvram/web1_VARS.fd </nvram>",
    )
    found = adapted(xml)
    assert ">/usr/bin/qemu-system-x86_64<" in found.xml and ">/var/lib/libvirt/qemu/nvram/web1_VARS.fd<" in found.xml


@pytest.mark.parametrize("readonly", ["", " readonly='no'"])
@pytest.mark.parametrize("system", ["{}", "</os><os>{}"], ids=["in the first list", "in a second list"])
def test_firmware_that_all_machines_of_the_host_share_is_opened_for_reading_only(readonly: str, system: str) -> None:
    """A host whose QEMU runs as root would let the guest change the firmware of all others."""
    shared = f"<loader{readonly} type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
    found = adapted(definition(system=system.format(shared)))
    assert [each.get("readonly") for each in ElementTree.fromstring(found.xml).iterfind("./os/loader")] == ["yes"]
    assert (
        "The loader /usr/share/OVMF/OVMF_CODE_4M.fd belongs to the host and is opened for reading only."
        in found.changes
    )


def test_firmware_of_the_machine_itself_stays_as_it_was() -> None:
    own = "<loader readonly='no' type='pflash'>/fw</loader>"
    found = adapted(definition(system=own), files={"loader": "/new/web1-loader"})
    assert ElementTree.fromstring(found.xml).find("./os/loader").attrib == {"readonly": "no", "type": "pflash"}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["kernel", "initrd", "dtb", "loader"])
def test_a_file_that_was_not_restored_is_refused(kind: str) -> None:
    with pytest.raises(Refused, match=f"os/{kind} "):
        adapted(definition(system=SYSTEM), files={each: path for each, path in FILES.items() if each != kind})


@pytest.mark.parametrize(("kind", "taken"), [("raw", True), ("qcow2", False), ("vmdk", False)])
def test_restored_firmware_is_raw_as_other_images_can_name_files_of_the_host(kind: str, taken: bool) -> None:
    xml = definition(system=f"<loader type='pflash' format='{kind}'>/fw</loader>")
    if taken:
        assert ">/new/web1-loader</loader>" in adapted(xml, files=FILES).xml
    else:
        with pytest.raises(Refused, match=f"os/loader type=pflash format={kind} /fw"):
            adapted(xml, files=FILES)
    variables = adapted(definition(system=f"<loader>bios.bin</loader><nvram format='{kind}'>/nv</nvram>"), files=FILES)
    kept = "" if kind == "vmdk" else f' format="{kind}"'  # the content is checked where it is read
    assert f"<nvram{kept}>/new/web1-nvram</nvram>" in variables.xml


VARIABLES = {
    "its own": ("/var/lib/libvirt/qemu/nvram/web1_VARS.fd", "", True),
    "its own, RAW": ("/var/lib/libvirt/qemu/nvram/web1_VARS.fd", " format='raw'", True),
    "its own, qcow2": ("/var/lib/libvirt/qemu/nvram/web1_VARS.qcow2", " format='qcow2'", True),
    "its own RAW ones as qcow2": ("/var/lib/libvirt/qemu/nvram/web1_VARS.fd", " format='qcow2'", False),
    "its own qcow2 ones as RAW": ("/var/lib/libvirt/qemu/nvram/web1_VARS.qcow2", "", False),
    "of another machine": ("/var/lib/libvirt/qemu/nvram/web2_VARS.fd", "", False),
    "by a way up": ("/var/lib/libvirt/qemu/nvram/../nvram/web1_VARS.fd", "", False),
}


@pytest.mark.parametrize(("path", "fmt", "stays"), VARIABLES.values(), ids=VARIABLES.keys())
@pytest.mark.parametrize("more", ["", "</os><os>"], ids=["in the first list", "in a second list"])
def test_firmware_variables_stay_only_in_the_machines_own_libvirt_path(
    more: str, path: str, fmt: str, stays: bool
) -> None:
    xml = definition(system=f"{more}<nvram{fmt}>{path}</nvram>")
    found = adapted(xml)
    assert (path in found.xml) == stays == (found.changes == ())
    assert path not in adapted(definition(system=f"<nvram{fmt}>{path}</nvram>"), copy=True).xml


FIRMWARE = {
    "/usr/share/OVMF/OVMF_CODE_4M.fd": True,
    "/usr/share/edk2/ovmf/OVMF_CODE.fd": True,
    "/usr/share/edk2-ovmf/x64/OVMF.fd": True,
    "/usr/share/AAVMF/AAVMF_CODE.fd": True,
    "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd": True,
    "/usr/share/qemu/bios.bin": True,
    "/opt/firmware/described.fd": True,
    "/opt/firmware/other.fd": False,
    "/usr/share/OVMF/../../../etc/shadow": False,
    "/usr/share/OVMF//../x": False,
    "/usr/share/OVMFevil/x": False,
    "/usr/share/keys/x": False,
    "usr/share/OVMF/x": False,
    "": False,
}


@pytest.mark.parametrize(("path", "known"), FIRMWARE.items())
def test_firmware_is_what_the_host_describes_or_keeps_in_its_folders(path: str, known: bool) -> None:
    assert is_firmware(path, {"/opt/firmware/described.fd"}) == known


def test_descriptors_name_firmware_and_templates_and_damaged_ones_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping = {
        "device": "flash",
        "executable": {"filename": "/f/code.fd", "format": "raw"},
        "nvram-template": {"filename": "/f/vars.fd"},
    }
    (tmp_path / "50-good.json").write_text(json.dumps({"mapping": mapping, "targets": [{"machines": ["q35"]}]}))
    (tmp_path / "60-list.json").write_text(
        json.dumps(
            [{"mapping": {"device": "memory", "filename": "/f/bios.bin"}}, {"filename": "relative"}, {"filename": 7}]
        )
    )
    (tmp_path / "70-bad.json").write_bytes(b"\xff{")
    (tmp_path / "80-deep.json").write_text("[" * 100_000)
    (tmp_path / "90-folder.json").mkdir()
    (tmp_path / "other.txt").write_text(json.dumps({"filename": "/f/other"}))
    monkeypatch.setattr(firmware, "_DESCRIPTORS", [f"{folder}/*.json" for folder in (tmp_path, tmp_path / "missing")])
    assert firmware.described_firmware() == {"/f/code.fd", "/f/vars.fd", "/f/bios.bin"}


# What an enemy makes large or strange.


def test_messages_stay_short_and_printable_whatever_a_definition_holds() -> None:
    many = (
        "".join(f"<e{number}/>" for number in range(5000))
        + f"<long path='{'x' * 100_000}'/><text>{'&#x202e;' * 1000}</text>"
    )
    found = adapted(definition(extra=f"<odd a='&#9;&#x9b;31m{'b' * 1000}'/>{many}"))
    assert len(found.changes) == 101 and found.changes[-1] == "And 4903 more."
    assert all(line.isprintable() and len(line) < 300 for line in found.changes)
    with pytest.raises(Refused) as caught:
        adapted(definition("".join(f"<hostdev mode='{number}'/>" for number in range(5000))))
    assert "And 4900 more" in str(caught.value) and len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    "root",
    [
        "<domain xmlns='urn:other' type='kvm'/>",
        "<o:domain xmlns:o='urn:other'/>",
        "<domainsnapshot/>",
        "<future><domain/></future>",
    ],
)
def test_a_definition_that_is_not_a_domain_is_refused(root: str) -> None:
    with pytest.raises(Refused):
        adapted(root)


# Texts that libvirt is given. Each is made by the engine, or was libvirt's own; of a repository there is one, and it is adapted.

GIVEN = {
    ("hypervisor/checkpoints.py", "checkpointCreateXML"),
    ("hypervisor/definition.py", "updateDeviceFlags"),
    ("hypervisor/paused_start.py", "createXML"),  # libvirt's definition of the domain, with a mark
    ("hypervisor/backup_job.py", "backupBegin"),
    ("hypervisor/storage_pools.py", "storagePoolCreateXML"),
    ("hypervisor/storage_pools.py", "storagePoolDefineXML"),
    ("operations/tracking/capability.py", "defineXML"),
    ("operations/restore/isolation.py", "networkDefineXML"),
    ("operations/restore/machine.py", "defineXML"),
}


def test_no_other_text_of_a_repository_comes_to_libvirt() -> None:
    """The XML of a checkpoint in a manifest, with a definition in it, is never handed on: a checkpoint is known again by its name and disks."""
    engine = Path(str(_cbt.__file__)).parent
    calls = {
        (str(path.relative_to(engine)), node.func.attr)
        for path in engine.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert {
        (path, name)
        for path, name in calls
        if re.search(r"(Define|Create|define|create)XML|Device(Flags)?$|^backupBegin|^migrate|^restore.*Flags", name)
    } == GIVEN
    readers = [path for path in engine.rglob("*.py") if re.search(r"\bpoint\.checkpoint_xml", path.read_text())]
    assert readers == []


# Any tree.

HOST = Host(frozenset({NEW, "/new/web1-kernel"}), frozenset({"/opt/described.fd"}), lambda path: True)
SCHEMAS = sorted(Path("/usr/share/libvirt/schemas").glob("*.rng"))
WORDS = sorted(
    {part for path in ALLOWED for part in path.split("/") if part != "."}
    | {name for rule in ALLOWED.values() for name in rule.values if name != "#"}
)
WORDS += sorted(
    {
        word
        for path in SCHEMAS
        for word in re.findall(r'<(?:element|attribute) name="([A-Za-z][A-Za-z0-9_-]*)"', path.read_text())
    }
)
VALUES = [
    "",
    "1",
    "yes",
    "file",
    "pty",
    "unix",
    "bind",
    "connect",
    "/etc/shadow",
    "a/b",
    "../x",
    NEW,
    "/new/web1-kernel",
    "/usr/bin/qemu-system-x86_64",
    "x\ny",
]
VALUES += [
    "/usr/share/OVMF/c.fd",
    "/opt/described.fd",
    "/dev/urandom",
    "/machine",
    "0.0.0.0",
    "127.0.0.1",
    "network",
    "hostdev",
    "emulator",
    "random",
    "virtio",
]
VALUES += sorted({word for path in SCHEMAS for word in re.findall(r"<value>([^<]*)</value>", path.read_text())})
# Where a value with a slash is no path: text, names, time zones, netmasks, Base64.
_TEXTS = re.compile(
    r"(title|description|os/cmdline|sysinfo/.*|clock timezone|launchSecurity/.*|devices/graphics passwd|devices/interface/filterref/parameter value)( .*)?"
)
_OWN_PATHS = {
    NEW,
    "/new/web1-kernel",
    "/usr/bin/qemu-system-x86_64",
    "/usr/share/OVMF/c.fd",
    "/opt/described.fd",
    "/dev/urandom",
    "/machine",
}


def _grown(chance: random.Random, tag: str, path: str, depth: int) -> ElementTree.Element:
    """An element with attributes and children, most of them such as the table has at its place."""
    element = ElementTree.Element(
        tag, {chance.choice(WORDS): chance.choice(VALUES) for _each in range(chance.randrange(3))}
    )
    known = ALLOWED.get(path)
    for name in known.values if known is not None else ():
        if name != "#" and chance.random() < 0.5:
            element.set(name, _value(chance, known.values[name].kind if known is not None else ""))
    element.text = chance.choice(
        [
            None,
            " \n",
            chance.choice(VALUES),
            _value(chance, known.values["#"].kind) if known is not None and "#" in known.values else "x",
        ]
    )
    below = sorted(
        {
            each.split("/")[len(path.split("/")) if path != "." else 0]
            for each in ALLOWED
            if path == "." or each.startswith(f"{path}/")
        }
        - {"."}
    )
    for _each in range(chance.randrange(6) if depth else 0):
        child = (
            chance.choice(below)
            if below and chance.random() < 0.8
            else chance.choice([*WORDS, "{urn:other}source", "metadata"])
        )
        element.append(_grown(chance, child, child if path == "." else f"{path}/{child}", depth - 1))
    element.tail = chance.choice([None, "\n", "/etc/shadow"])
    return element


def _value(chance: random.Random, kind: str) -> str:
    return chance.choice(kind.split("|")) if kind[:1].islower() and chance.random() < 0.7 else chance.choice(VALUES)


def _held(element: ElementTree.Element, path: str = ".") -> t.Iterator[tuple[str, str, str]]:
    """Path, name and value of each attribute and text, and of each element by itself; those in metadata are data."""
    yield path, "", ""
    for name, value in (*element.items(), ("#", (element.text or "").strip()), ("tail", (element.tail or "").strip())):
        if value or name not in ("#", "tail"):
            yield path, name, value
    for child in element if path != "metadata" else ():
        yield from _held(child, child.tag if path == "." else f"{path}/{child.tag}")


@given(st.integers(0, 1 << 32))
def test_filtering_any_tree_leaves_only_entries_of_the_table(seed: int) -> None:
    root = _grown(random.Random(seed), "domain", ".", 5)
    found: Filtered = filtered(root, HOST)
    for path, name, value in _held(found.root):
        assert path in ALLOWED, path
        if path != "metadata":
            assert name in ALLOWED[path].values or name == "", (path, name, value)
            assert (
                "/" not in value or value.strip() in _OWN_PATHS or _TEXTS.fullmatch(f"{path} {name}".replace(" #", ""))
            ), (path, name, value)
    assert (
        not (REFUSED - {"."})
        & {"devices/hostdev", "devices/filesystem", "devices/shmem"}
        & {path for path, _name, _value in _held(found.root)}
    )
    again = filtered(found.root, HOST)
    assert (canonical(again.root), again.changes, again.refused) == (canonical(found.root), (), ())
