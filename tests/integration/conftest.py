# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of tests that run on a real hypervisor."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kinds import Bench, create_encrypted  # noqa: E402
from lab.ceph import GATEWAY_PROGRAMS, Ceph  # noqa: E402
from lab.disks import DiskSpec  # noqa: E402
from lab.domain import BlockDomain  # noqa: E402
from lab.hypervisor import Hypervisor  # noqa: E402
from lab.object_store import Account, Rclone, rclone_program  # noqa: E402
from witness import ask, session_of  # noqa: E402

from _cbt.hypervisor.connection import Session  # noqa: E402
from _cbt.operations.backup.backup import backup  # noqa: E402
from _cbt.repository.creation import open_or_create  # noqa: E402
from _cbt.repository.repository import Repository  # noqa: E402

MIB = 1 << 20


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cache and known repositories are kept apart from this machine's, also by the processes that are started."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        changed.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this collection under the name by which Ansible finds it."""
    tool = Path(__file__).resolve().parents[1] / "tools/collection_tree.sh"
    return Path(
        subprocess.run(
            [tool, tmp_path_factory.mktemp("collections")], check=True, capture_output=True, text=True
        ).stdout.strip()
    )


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """The hypervisor of this machine, shared by all tests of a run."""
    with Hypervisor() as lab:
        yield lab


@pytest.fixture
def workspace(hypervisor: Hypervisor) -> Path:
    """A fresh folder which QEMU may write to."""
    return hypervisor.folder()


@pytest.fixture
def repository(workspace: Path) -> Repository:
    """A new repository in a directory."""
    made = open_or_create(str(workspace / "repository"))
    assert made is not None
    return made


@pytest.fixture
def session(hypervisor: Hypervisor) -> Session:
    """A connection of the engine's own to the hypervisor."""
    return Session(lambda: libvirt.open(hypervisor.uri), hypervisor.uri)


@pytest.fixture(scope="session")
def encrypted(hypervisor: Hypervisor) -> Path:
    """A folder with a LUKS image, as RAW and in qcow2."""
    folder = hypervisor.folder()
    create_encrypted(folder)
    return folder


@pytest.fixture
def bench(hypervisor: Hypervisor, workspace: Path, encrypted: Path) -> Iterator[Bench]:
    """Images of many kinds."""
    with contextlib.ExitStack() as stack:
        yield Bench(hypervisor, workspace, encrypted, stack)


@pytest.fixture
def original(hypervisor: Hypervisor, repository: Repository) -> Iterator[BlockDomain]:
    """A shut-off domain with a disk of qcow2 and one of raw, which is backed up."""
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 4 * MIB, format="raw")]) as domain:
        domain.write_random("vda", MIB, 3 * MIB, 1)
        domain.write_random("vdb", MIB, MIB, 2)
        domain.destroy()
        backup(session_of(domain), repository, ask(domain.name))
        yield domain


@pytest.fixture(scope="session")
def rclone() -> Iterator[Account]:
    """An account of a small object store which heeds no conditions and has no versions."""
    if rclone_program() is None:
        pytest.skip("not installed: rclone; tests/requirements.txt has it")
    with Rclone() as server:
        yield server.account


@pytest.fixture(scope="session")
def gateway() -> Iterator[Account]:
    """An account of a real Ceph object gateway."""
    missing = [program for program in GATEWAY_PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; tests/tools/install.sh installs them")
    with Ceph() as cluster:
        yield cluster.serve_s3()
