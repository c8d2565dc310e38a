# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restoring machines where something is in the way, or goes wrong."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path

import pytest
from lab.domain import BlockDomain
from lab.reference import same_bytes
from module_process import ModuleProcess, run_module
from restored import new_name, refused, removed

from _cbt.errors import CbtError
from _cbt.hypervisor.connection import Session
from _cbt.hypervisor.domain_xml.disks import parse_disks
from _cbt.operations.restore.restore import MachineOptions, RestoreRequest, restore
from _cbt.repository.repository import Repository

MIB = 1 << 20
COPY = MachineOptions(new_uuid=True, new_macs=True)


def test_an_existing_domain_is_replaced_only_on_request_and_never_while_it_runs(
    original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    name, other = original.name, new_name()
    out = workspace / "out"
    out.mkdir()
    same = RestoreRequest(name, dest=str(out), machine=MachineOptions())
    by_force = RestoreRequest(name, dest=str(out), machine=MachineOptions(), force=True)
    refused(repository, session, same, "it exists already. Restore a copy")
    refused(
        repository,
        session,
        RestoreRequest(name, dest=str(out), machine=COPY),
        f"another domain of that name with UUID {original.uuid}",
    )
    refused(
        repository,
        session,
        RestoreRequest(name, dest=str(out), new_name=other, machine=MachineOptions()),
        f"{name} has its UUID",
    )
    original.start()
    refused(repository, session, by_force, "it exists already and is running")
    original.handle.managedSave()
    refused(repository, session, by_force, "has a saved state")
    original.handle.managedSaveRemove()
    assert list(out.iterdir()) == []

    result = restore(repository, by_force, session)
    assert original.image("vda") == out / f"{name}-vda.qcow2" == Path(result.disks[0].path)
    original.start()
    assert original.running


def test_a_configuration_libvirt_refuses_leaves_nothing(
    original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    out = workspace / "out"
    out.mkdir()
    request = RestoreRequest(
        original.name,
        dest=str(out),
        new_name="not/a/name",
        disk_map={"vda": str(out / "a"), "vdb": str(out / "b")},
        machine=COPY,
    )
    with pytest.raises(CbtError, match="Cannot define not/a/name"):
        restore(repository, request, session)
    assert list(out.iterdir()) == []


def test_a_machine_that_cannot_start_is_still_defined(
    original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    name = new_name()
    request = RestoreRequest(
        original.name,
        dest=str(workspace),
        new_name=name,
        machine=MachineOptions(new_uuid=True, start=True, autostart=True),
    )
    point = repository.points_of().points[-1]
    taken = repository.get_file(point, point.files["inactive.xml"]).decode()
    broken = taken.replace(
        "</devices>", "<interface type='network'><source network='no-such-network'/></interface></devices>"
    )
    files = repository.put_files(point.folder, {"inactive.xml": broken.encode()})
    repository.publish(dataclasses.replace(point, files={**point.files, **files}))
    with removed(session, name):
        with pytest.raises(CbtError, match=f"Cannot start {name}.* It was restored and defined"):
            restore(repository, request, session)
        domain = session.api.lookupByName(name)
        assert (bool(domain.autostart()), bool(domain.isActive())) == (True, False)
        domain.setAutostart(0)


@pytest.mark.parametrize("moment", range(8))
def test_a_restore_that_is_killed_leaves_no_domain_and_no_file_that_is_not_whole(
    moment: int, original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    name = new_name()
    out = workspace / "out"
    out.mkdir()
    arguments = {
        "domain": original.name,
        "repository": str(workspace / "repository"),
        "dest": str(out),
        "new_name": name,
        "define": True,
    }
    process = ModuleProcess(workspace, "cbt_restore", arguments)
    with removed(session, name):
        for _look in range(20000):
            there = list(out.iterdir())
            if process.process.poll() is not None or len(there) > moment % 4:
                break
            time.sleep(0.0005)
        time.sleep(0.004 * (moment // 4))
        process.signal(signal.SIGKILL)
        process.process.communicate()
        final = [path for path in out.iterdir() if ".partial-" not in path.name]
        for path in final:
            target = "vda" if "-vda." in path.name else "vdb"
            assert same_bytes(path, original.image(target), "qcow2", original_format(target)) is None
        defined = [domain.name for domain in session.domains() if domain.name == name]
        assert not defined or len(final) == 2
        # Once more, as one would.
        if not defined:
            result = run_module(workspace, "cbt_restore", **arguments, force=True)
            assert result.get("failed") is not True, result
            assert [path for path in out.iterdir() if ".partial-" in path.name] == []
        assert {disk.target for disk in parse_disks(session.api.lookupByName(name).XMLDesc(0))} == {"vda", "vdb"}


def original_format(target: str) -> str:
    return {"vda": "qcow2", "vdb": "raw"}[target]
