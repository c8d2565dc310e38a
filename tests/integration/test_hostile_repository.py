# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository that an enemy wrote, restored by UUID through the module and the role: nothing appears but in ``dest``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from lab.hypervisor import Hypervisor
from module_process import run_module
from plays import Play

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))

from hostile import SIZE, Enemy, changed, text_of, values  # noqa: E402
from samples import UUID, created, point_id  # noqa: E402
from stores_for_tests import MemoryStore  # noqa: E402

from _cbt.repository.repository import Repository  # noqa: E402

XML = (
    f"<domain type='qemu'><name>web1</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory><os><type>hvm</type></os>"
    "<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
)


class Place:
    """A repository in a directory, a folder to restore into, and what must stay as it is."""

    def __init__(self, workspace: Path, repository: Repository) -> None:
        self.folder, self.dest, self.outside = workspace, workspace / "dest", workspace / "outside"
        self.dest.mkdir()
        self.outside.mkdir()
        (self.outside / "file").write_bytes(b"precious")
        self.location = Path(str(repository.store.local_path))
        self._store = MemoryStore()
        self.enemy = Enemy(Repository(self._store, repository.id), XML)

    def publish(self, number: int, path: tuple[Any, ...] = (), value: Any = None, index: Any = None) -> None:
        """A point of the ``number``-th day, with another value at a place of its manifest, or another machine.json."""
        files = self.enemy.files(None if index is None else text_of(index))
        body = self.enemy.manifest(files, number)
        self.enemy.publish(
            changed(body, path, value) if path else body, f"points/{UUID}/{point_id(number)}/manifest.json"
        )
        for name, data in self._store.objects.items():
            place = self.location / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    def around(self) -> list[tuple[str, int, int]]:
        """All that is outside of the repository and of ``dest``."""
        found = [
            path
            for path in self.folder.rglob("*")
            if self.dest not in path.parents and self.location not in path.parents
        ]
        kept = [path for path in found if path.suffix != ".json" and "collections" not in path.parts]
        return sorted((str(path), path.lstat().st_size, path.lstat().st_mode) for path in kept)

    def restored(self) -> dict[str, int]:
        """Files in ``dest``, with their sizes."""
        return {path.name: path.stat().st_size for path in self.dest.iterdir()}


@pytest.fixture
def place(workspace: Path, repository: Repository) -> Place:
    return Place(workspace, repository)


@pytest.fixture
def cleaned(hypervisor: Hypervisor) -> Iterator[libvirt.virConnect]:
    """libvirt, on which the machine of the repository is not there afterwards."""
    yield hypervisor.connection
    for domain in hypervisor.connection.listAllDomains():
        if domain.UUIDString() == UUID:
            domain.undefine()


MANIFESTS = {
    "domain": (("domain",), "absolute"),
    "domain upwards": (("domain",), "up"),
    "target": (("disks", 0, "target"), "up"),
    "file": (("files", "kernel.0", "name"), "absolute"),
    "map": (("disks", 0, "map", "name"), "up"),
    "size": (("disks", 0, "size"), "2**63"),
    "deep": (("disks", 0, "image"), "deep"),
}
INDEXES = {
    "kind": ("kind", "up"),
    "pieces": ("pieces", "100,000 names"),
    "size": ("size", "2**63"),
    "mode": ("mode", "2**80"),
}


def test_the_module_puts_nothing_outside_of_dest(place: Place, cleaned: libvirt.virConnect) -> None:
    hostile = values(str(place.outside))
    arguments = {"domain": UUID, "repository": str(place.location), "dest": str(place.dest)}
    for number, (path, value) in enumerate(MANIFESTS.values(), 2):
        place.publish(number, path, hostile[value])
    before = place.around()
    refused = run_module(place.folder, "cbt_restore", define=True, force=True, **arguments)
    assert refused.get("failed") and "no restore point" in refused["msg"], refused  # all of them are damaged
    for number, (field, value) in enumerate(INDEXES.values(), 20):
        honest = place.enemy.index()["files"][0]
        place.publish(number, index={"files": [{**honest, field: hostile[value]}]})
        for check in (True, False):
            refused = run_module(place.folder, "cbt_restore", check=check, define=True, force=True, **arguments)
            assert (
                refused.get("failed") and "machine.json is damaged" in refused["msg"] and len(refused["msg"]) < 1000
            ), refused
    assert place.restored() == {} and place.around() == before
    disks = run_module(place.folder, "cbt_restore", format="raw", **arguments)
    assert disks["changed"] and place.restored() == {"web1-vda.raw": SIZE} and place.around() == before


def test_the_role_brings_a_machine_back_by_uuid_and_puts_nothing_outside_of_dest(
    place: Place, collections: Path, tmp_path: Path, cleaned: libvirt.virConnect
) -> None:
    hostile = values(str(place.outside))
    place.publish(1)
    for number, (path, value) in enumerate(MANIFESTS.values(), 2):
        place.publish(number, path, hostile[value])
    place.publish(20, index={"files": [{**place.enemy.index()["files"][0], "kind": hostile["up"]}]})
    before = place.around()
    # The newest point has a hostile index. Before it an older one is taken: those in between are damaged, whatever they name.
    machines = [{"name": UUID, "start": False, "force": True}, {"name": "web1", "start": False, "until": created(19)}]
    variables = {
        "cbt_repository": str(place.location),
        "disaster_recovery_dest": str(place.dest),
        "disaster_recovery_machines": machines,
    }
    play = Play(collections, tmp_path)
    for options in (["--check"], []):
        printed = play.run(
            "role:kvm.cbt.disaster_recovery", variables, *options, fails=f"Not restored: {UUID}.", warns="is damaged"
        )
        assert (
            "machine.json is damaged" in printed
            and "Traceback" not in printed
            and f"restored from {point_id(1)}" in printed
        )
        assert place.around() == before
        assert set(place.restored()) == (set() if options else {"web1-vda.qcow2", "web1-kernel", "web1-dtb"})
    assert cleaned.lookupByUUIDString(UUID).name() == "web1"
