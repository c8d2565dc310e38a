# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions from a repository on a real libvirt: what reaches out of the guest is not in what libvirt keeps, and what is left is a machine."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest
from lab.base import UNDEFINE_ALL
from lab.hypervisor import Hypervisor
from module_process import run_module

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))

from hostile import Enemy, text_of  # noqa: E402
from hostile_definitions import ORDINARY, QEMU, REACHES, VDA, definition  # noqa: E402
from samples import UUID, target_machine  # noqa: E402
from stores_for_tests import MemoryStore  # noqa: E402

from _cbt.operations.restore.machine_xml import adapt  # noqa: E402
from _cbt.repository.repository import Repository  # noqa: E402

# On the machine of the tests none of these exists but the file in the drive.
RUNS_WITHOUT = {
    "seclabel": "<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>",
    "/etc/cron.d/evil2": f"<qemu:commandline {QEMU}><qemu:arg value='file,path=/etc/cron.d/evil2'/></qemu:commandline>",
    "/etc/shadow": "<disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='sda' bus='sata'/></disk>",
    "/mnt/nfs/evil.sh": "<interface type='ethernet'><script path='/mnt/nfs/evil.sh'/><target dev='tap9'/></interface>",
    "/etc/cron.d/evil1": "<serial type='pty'><log file='/etc/cron.d/evil1' append='on'/></serial>",
}
NEEDS = {
    'dir="/"': "<filesystem type='mount' accessmode='passthrough'><source dir='/'/><target dir='root'/></filesystem>",
    "hostdev": "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='0' slot='31' function='2'/></source></hostdev>",
}


def written(parts: dict[str, str]) -> str:
    """A definition with these parts, as QEMU without acceleration can have it."""
    extra = [part for part in parts.values() if part.startswith(("<seclabel", "<qemu:"))]
    return definition(
        "".join(part for part in parts.values() if part not in extra), "".join(extra), kind="qemu"
    ).replace("machine='pc'", "machine='q35'")


@pytest.fixture
def cleaned(hypervisor: Hypervisor) -> Iterator[libvirt.virConnect]:
    """libvirt, on which the machine of the repository is not there afterwards."""
    yield hypervisor.connection
    forget(hypervisor.connection)


def forget(api: libvirt.virConnect) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        api.lookupByUUIDString(UUID).undefineFlags(UNDEFINE_ALL | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


def publish(location: Path, repository: Repository, xml: str) -> None:
    """Put a restore point of this definition into the repository; its manifest says that it is of this host."""
    store = MemoryStore()
    enemy = Enemy(Repository(store, repository.id), xml)
    body = enemy.manifest(enemy.files(text_of({"files": []})))
    enemy.publish({**body, "host": socket.gethostname()})
    for name, data in store.objects.items():
        place = location / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def kept(api: libvirt.virConnect) -> str:
    """The definition as libvirt keeps it."""
    return ElementTree.tostring(
        ElementTree.fromstring(api.lookupByUUIDString(UUID).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)),
        encoding="unicode",
    )


def arguments(workspace: Path, repository: Repository) -> dict[str, Any]:
    dest = workspace / "dest"
    dest.mkdir()
    return {"domain": UUID, "repository": str(repository.store.local_path), "dest": str(dest), "define": True}


def test_what_the_machine_runs_without_is_removed_unless_it_is_trusted(
    workspace: Path, repository: Repository, cleaned: libvirt.virConnect
) -> None:
    publish(Path(str(repository.store.local_path)), repository, written(RUNS_WITHOUT))
    options = arguments(workspace, repository)
    predicted = run_module(workspace, "cbt_restore", check=True, **options)
    made = run_module(workspace, "cbt_restore", **options)
    assert made.get("changed") and made["changes"] == predicted["changes"], made
    xml = kept(cleaned)
    assert [mark for mark in RUNS_WITHOUT if mark in xml or mark in predicted["domain_xml"]] == []
    assert [mark for mark in RUNS_WITHOUT if not any(mark in line for line in made["changes"])] == []
    trusting = run_module(workspace, "cbt_restore", force=True, trust_definition=True, **options)
    assert trusting.get("changed") and trusting["changes"] == [], trusting
    xml = kept(cleaned)
    assert [mark for mark in RUNS_WITHOUT if mark not in xml] == []


def test_what_the_machine_needs_is_refused_unless_it_is_trusted(
    workspace: Path, repository: Repository, cleaned: libvirt.virConnect
) -> None:
    publish(Path(str(repository.store.local_path)), repository, written({**RUNS_WITHOUT, **NEEDS}))
    options = arguments(workspace, repository)
    for check in (True, False):
        refused = run_module(workspace, "cbt_restore", check=check, **options)
        assert (
            refused.get("failed")
            and "filesystem" in refused["msg"]
            and "hostdev" in refused["msg"]
            and "trust_definition: true" in refused["msg"]
        ), refused
    assert list((workspace / "dest").iterdir()) == [] and UUID not in [
        domain.UUIDString() for domain in cleaned.listAllDomains()
    ]
    copy = run_module(workspace, "cbt_restore", check=True, new_name="copy", **options)
    assert copy["changed"] and [mark for mark in (*NEEDS, *RUNS_WITHOUT) if mark in copy["domain_xml"]] == [], copy
    trusting = run_module(workspace, "cbt_restore", trust_definition=True, **options)
    assert trusting.get("changed"), trusting
    xml = kept(cleaned)
    assert [mark for mark in (*RUNS_WITHOUT, *NEEDS) if mark not in xml] == []


def test_libvirt_defines_what_is_left_of_each_definition_and_keeps_nothing_of_what_was_removed(
    workspace: Path, cleaned: libvirt.virConnect
) -> None:
    wanted = target_machine(str(workspace / "vda.qcow2"))
    refused, left = {}, {}
    for name, reach in REACHES.items():
        if reach.refused:
            continue
        try:
            cleaned.defineXML(adapt(_defineable(reach.xml), wanted, lambda path: Path(path).exists()).xml)
        except libvirt.libvirtError as error:
            refused[name] = str(error)
            continue
        left[name] = [mark for mark in reach.marks if mark in kept(cleaned)]
        forget(cleaned)
    assert (refused, left) == ({}, dict.fromkeys(left, []))


@pytest.mark.parametrize("name", [name for name in ORDINARY if name != "another architecture"])
def test_an_ordinary_machine_is_to_libvirt_what_it_is_with_trust(
    name: str, workspace: Path, cleaned: libvirt.virConnect
) -> None:
    found = []
    for trusted in (True, False):
        wanted = target_machine(str(workspace / "vda.qcow2"), trusted=trusted)
        cleaned.defineXML(
            adapt(
                _defineable(ORDINARY[name].xml), wanted, lambda path: path.endswith(".iso") or Path(path).exists()
            ).xml
        )
        found.append(re.sub("<(genid|mac address)[^/]*/", "", kept(cleaned)))  # where there is none, libvirt makes one
        forget(cleaned)
    assert (found[0] == found[1]) == (not ORDINARY[name].changes)


def _defineable(xml: str) -> str:
    """For QEMU without acceleration."""
    return (
        xml.replace("type='kvm'", "type='qemu'", 1)
        .replace("machine='pc'", "machine='q35'")
        .replace(VDA, VDA.replace("dev='vda'", "dev='vda' bus='virtio'"))
    )
