# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Firmware variables in qcow2 beside RAW firmware (libvirt 9.2 and later), and a TPM whose state has a path of its own (10.10)."""

from __future__ import annotations

import json
import shutil
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import libvirt_qemu
import node_restore
import pytest
from lab.cluster import Cluster
from lab.nodes import Node
from lab.process import run_tool
from lab.tree import trixie_tree
from node_backup import back_up_in
from restored import new_name, removed

from _cbt.hypervisor.connection import Session

pytestmark = pytest.mark.xdist_group("firmware of a newer libvirt")

FIRMWARE = Path("/usr/share/OVMF")
CONTENT = (FIRMWARE / "OVMF_VARS_4M.fd").read_bytes()[:-16] + b"of this machine!"
ROWS = {
    "format": "<nvram format='qcow2'>{path}</nvram>",
    "template in RAW": f"<nvram template='{FIRMWARE}/OVMF_VARS_4M.fd' templateFormat='raw' format='qcow2'>{{path}}</nvram>",
    # libvirt makes and names the variables.
    "template in qcow2": f"<nvram template='{FIRMWARE}/lab.qcow2' templateFormat='qcow2' format='qcow2'/>",
}


@pytest.fixture(scope="module")
def node() -> t.Iterator[Node]:
    """A hypervisor of libvirt 11 with firmware."""
    with Cluster(1, trees=[trixie_tree()]) as cluster:
        (made,) = cluster.nodes
        folder = made.path(FIRMWARE)
        folder.mkdir()
        for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"):
            shutil.copy(FIRMWARE / name, folder)
        variables(folder / "lab.qcow2")
        _install_swtpm(made)
        yield made


def _install_swtpm(node: Node) -> None:
    """Copy the emulator of this machine as far as libvirt asks it what it can do."""
    libraries = Path("/usr/lib/x86_64-linux-gnu")
    names = ("libtpms.so.0", "libjson-glib-1.0.so.0", "libunistring.so.2", "swtpm/libswtpm_libtpms.so.0")
    for file in (*Path("/usr/bin").glob("swtpm*"), *(each for name in names if (each := libraries / name).exists())):
        place = node.path(file)
        place.parent.mkdir(exist_ok=True)
        shutil.copy(file, place)


def variables(place: Path) -> None:
    """Write firmware variables in qcow2."""
    raw = place.with_suffix(".raw")
    raw.write_bytes(CONTENT)
    run_tool(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, place])
    place.chmod(0o666)


class Machine:
    """A machine with firmware on a node. It is started paused, so that its firmware writes nothing."""

    def __init__(self, node: Node, nvram: str, device: str = "") -> None:
        self.node, self.name, self.folder = node, new_name(), node.hypervisor.folder()
        self.connection = node.hypervisor.connection
        self._image = self.folder / "a.qcow2"
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", self._image, "8M"])
        self._image.chmod(0o666)
        variables(self.folder / "variables")
        self.connection.defineXML(f"""<domain type='qemu'><name>{self.name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>{FIRMWARE}/OVMF_CODE_4M.fd</loader>
        {nvram.format(path=self.folder / "variables")}</os><features><acpi/></features><devices>
        <disk type='file'><driver name='qemu' type='qcow2'/><source file='{self._image}'/><target dev='vda' bus='virtio'/></disk>
        {device.format(folder=self.folder)}</devices></domain>""")

    def lose(self) -> None:
        """The host loses the machine."""
        handle = self.connection.lookupByName(self.name)
        if handle.isActive():
            handle.destroy()
        handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        self._image.unlink()

    def restore(self, new_name: str | None, **machine: bool) -> t.Any:
        asked = {
            "domain": self.name,
            "new_name": new_name,
            "uri": "qemu:///system",
            "repository": str(self.folder / "repository"),
            "dest": str(self.folder),
            "machine": machine,
        }
        done = self.node.run(["/usr/bin/python3", node_restore.__file__], stdin=json.dumps(asked))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def sources_of_tpm(self, name: str) -> list[dict[str, str]]:
        xml = self.connection.lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return [dict(each.attrib) for each in ElementTree.fromstring(xml).iterfind("./devices/tpm/backend/source")]

    def start(self, name: str) -> tuple[dict[str, str], str, bytes]:
        """Start a machine; the attributes of its variables, the format in which QEMU opened them, and their content."""
        handle = self.connection.lookupByName(name)
        handle.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        (element,) = ElementTree.fromstring(handle.XMLDesc(0)).iterfind("./os/nvram")
        answer = libvirt_qemu.qemuMonitorCommand(handle, json.dumps({"execute": "query-named-block-nodes"}), 0)
        (opened,) = (
            each
            for each in json.loads(answer)["return"]
            if each["drv"] != "file" and each["file"] == element.text and not each["ro"]
        )
        out = self.folder / "content"
        place = self.node.path(Path(element.text or ""))
        run_tool(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", place, out])
        return dict(element.attrib), opened["drv"], out.read_bytes()


@pytest.mark.parametrize("nvram", ROWS.values(), ids=ROWS.keys())
def test_a_restored_machine_starts_with_its_variables_in_qcow2(nvram: str, node: Node) -> None:
    made, copy, uri = Machine(node, nvram), new_name(), node.hypervisor.uri
    with removed(Session(lambda: libvirt.open(uri), uri), made.name, copy):
        original = made.start(made.name)
        assert original[1:] == ("qcow2", CONTENT)
        told = back_up_in(node, str(made.folder / "repository"), domain=made.name)
        assert told["warnings"] == []
        told = made.restore(copy, new_uuid=True, new_macs=True)
        assert (told["changes"], told["warnings"]) == ([], [])
        assert made.start(copy) == original
        made.lose()
        told = made.restore(None)
        assert (told["changes"], told["warnings"]) == ([], [])
        assert made.start(made.name) == original


@pytest.mark.parametrize("kind", ["dir", "file"])
def test_a_tpm_whose_state_has_a_path_of_its_own_is_in_the_warnings(kind: str, node: Node) -> None:
    source = f"<source type='{kind}' path='{{folder}}/tpm'/>"
    tpm = f"<tpm model='tpm-crb'><backend type='emulator' version='2.0'>{source}</backend></tpm>"
    made, copy, uri = Machine(node, ROWS["format"], tpm), new_name(), node.hypervisor.uri
    with removed(Session(lambda: libvirt.open(uri), uri), made.name, copy):
        told = back_up_in(node, str(made.folder / "repository"), domain=made.name)
        place = f"emulator {kind} {made.folder}/tpm"
        assert [each for each in told["warnings"] if "not saved" in each] == [
            f"tpm of the machine was not saved: libvirt does not keep its state ({place}). Save it yourself."
        ]
        told = made.restore(copy, new_uuid=True, new_macs=True)
        assert told["changes"] == [f"tpm/backend/source type={kind} path={made.folder}/tpm was removed."]
        assert made.sources_of_tpm(copy) == []
        made.lose()
        told = made.restore(None, trust_definition=True)
        assert told["changes"] == [] and made.sources_of_tpm(made.name) == [
            {"type": kind, "path": f"{made.folder}/tpm"}
        ]
