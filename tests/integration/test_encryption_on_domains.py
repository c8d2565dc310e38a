# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted repositories of real domains: every point true, and nothing in them to be read."""

from __future__ import annotations

import secrets
import typing as t
from pathlib import Path

import pytest
from lab.hypervisor import Hypervisor
from module_process import ModuleProcess
from trial import Trial

from _cbt.errors import PassphraseRefused
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.selecting import ALL

MIB = 1 << 20
MARK = b"what nobody may read in the repository. "


@pytest.fixture
def passphrase() -> str:
    return secrets.token_hex(16)


@pytest.mark.parametrize("compression", ["lz4", "zstd", "zlib", "none"])
def test_every_point_in_an_encrypted_repository_is_true_running_and_shut_off(
    hypervisor: Hypervisor, workspace: Path, passphrase: str, compression: str
) -> None:
    trial = Trial(hypervisor, workspace, "plain")
    made = open_or_create(RepositoryLocation(str(workspace / "repository"), passphrase=passphrase))
    assert made is not None
    trial.repository = made
    trial.fill()
    trial.domain.write_bytes("vda", 3 * MIB, MARK * 1000)
    modes = []
    for step in ("running", "running", "off", "off", "running"):
        if step == "off" and trial.domain.running:
            trial.domain.destroy()
        elif step == "running" and not trial.domain.running:
            trial.domain.start()
        taken = trial.backup(compression=compression)
        modes.append({disk.mode for disk in taken.result.disks})
        if trial.domain.running:
            trial.write()
    assert modes == [{"full"}, *[{"incremental"}] * 4]
    trial.repository = open_repository(RepositoryLocation(str(workspace / "repository"), passphrase=passphrase))
    assert trial.untrue() == []
    assert [verdict.status for verdict in verify(trial.repository, VerifyRequest(wanted=ALL))[0]] == ["ok"] * 5
    _nothing_to_be_read(trial.repository, [passphrase.encode(), MARK, trial.domain.name.encode(), b"<domain"])
    trial.domain.close()


def _nothing_to_be_read(repository: Repository, secret: t.Sequence[bytes]) -> None:
    root = Path(repository.store.location)
    objects = [path for path in root.rglob("*") if path.is_file()]
    assert len(objects) > 5
    found = [(path.relative_to(root), each) for path in objects for each in secret if each in path.read_bytes()]
    assert found == []


def test_a_backup_under_way_is_not_disturbed_by_a_new_passphrase(
    hypervisor: Hypervisor, workspace: Path, passphrase: str
) -> None:
    trial = Trial(hypervisor, workspace, "plain")
    made = open_or_create(RepositoryLocation(str(workspace / "repository"), passphrase=passphrase))
    assert made is not None
    trial.repository = made
    trial.fill()
    changing = ModuleProcess(
        workspace,
        "cbt_repository",
        {"repository": made.store.location, "passphrase": passphrase, "new_passphrase": "new"},
    )
    trial.backup()
    assert changing.result()["changed"]
    trial.write()
    trial.backup()  # by who opened it before
    trial.repository = open_repository(RepositoryLocation(made.store.location, passphrase="new"))
    trial.write()
    assert {disk.mode for disk in trial.backup().result.disks} == {"incremental"}
    assert trial.untrue() == []
    with pytest.raises(PassphraseRefused):
        open_repository(RepositoryLocation(made.store.location, passphrase=passphrase))
    trial.domain.close()
