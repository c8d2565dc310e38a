# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine restored on one host and defined on another, over storage which both have."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import libvirt
import node_restore
import pytest
from lab.base import UNDEFINE_ALL
from lab.cluster import Cluster
from lab.domain import BlockDomain, DiskSpec
from lab.nodes import Node
from lab.reference import same_bytes
from restored import new_name
from witness import ask, witnessed_backup

from _cbt.repository.creation import open_or_create

MIB = 1 << 20


@pytest.fixture(scope="module")
def nodes() -> t.Iterator[tuple[Node, Node]]:
    """The host a machine is to run on, and the host that restores."""
    with Cluster(2, ssh=True) as cluster:
        yield cluster.nodes[0], cluster.nodes[1]


def test_a_machine_is_started_on_another_host_where_that_sees_its_images_and_refused_where_not(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    target, here = nodes
    name = new_name()
    with BlockDomain(target.hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
        domain.write_random("vda", 0, MIB, 1)
        folder = domain.hypervisor.folder()
        made = open_or_create(str(folder / "repository"))
        assert made is not None
        taken = witnessed_backup(domain, made, tmp_path, ask(domain.name, scratch_dir=str(folder)))

        def bring_back(dest: str) -> t.Any:
            asked = {
                "domain": domain.name,
                "new_name": name,
                "uri": "qemu+ssh://node1/system",
                "repository": str(folder / "repository"),
                "dest": dest,
            }
            done = here.run(["/usr/bin/python3", node_restore.__file__], stdin=json.dumps(asked))
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        here.path(Path("/srv/only-here")).mkdir()
        for place in ("/srv/only-here", "/var/tmp"):  # the other host does not have it, or has another
            told = bring_back(place)
            assert f"what is in {place}: node1 does not see the files of this host there" in told["failed"]
            assert list(here.path(Path(place)).glob("*.qcow2*")) == []
        assert [each.name() for each in target.hypervisor.connection.listAllDomains()] == [domain.name]
        told = bring_back(str(folder))
        try:
            copy = target.hypervisor.connection.lookupByName(name)
            assert copy.isActive()
        finally:
            copy = target.hypervisor.connection.lookupByName(name)
            copy.destroy()
            copy.undefineFlags(UNDEFINE_ALL)
        assert same_bytes(Path(told["path"]), taken.copies["vda"], "qcow2", "raw") is None
        with pytest.raises(libvirt.libvirtError):
            here.hypervisor.connection.lookupByName(name)
        assert target.hypervisor.connection.listAllStoragePools() == []
