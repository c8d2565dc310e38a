# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repositories on S3: real domains, real servers, credentials from everywhere, and a server that dies."""

from __future__ import annotations

import datetime
import json
import os
import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.object_store import Account, Rclone
from lab.process import wait_until
from module_process import ModuleProcess, run_module
from witness import ask, differences, session_of, witnessed_backup

from _cbt.control import Control, Progress
from _cbt.errors import RepositoryError
from _cbt.operations.backup.backup import backup
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL
from _cbt.repository.stores import s3_client
from _cbt.repository.stores.s3_options import S3Options

pytestmark = pytest.mark.xdist_group("ceph")

MIB = 1 << 20
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
)


@pytest.fixture(params=["rclone", "gateway"])
def account(request: pytest.FixtureRequest) -> Account:
    return t.cast(Account, request.getfixturevalue(request.param))


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def repository_in(account: Account, location: str) -> Repository:
    made = open_or_create(RepositoryLocation(location, S3Options(**account.options)))
    assert made is not None
    return made


def filled(domain: BlockDomain) -> None:
    domain.write_random("vda", 0, 70 * MIB, 1)  # more than a pack
    domain.write_random("vda", 100 * MIB, MIB, 2)


def test_full_and_incremental_points_on_s3_are_true_and_verified(
    hypervisor: Hypervisor, workspace: Path, account: Account
) -> None:
    repository = repository_in(account, f"s3://{account.bucket()}/backups/kvm")
    restored = workspace / "restored"
    restored.mkdir()
    with BlockDomain(hypervisor, [DiskSpec("vda", 128 * MIB)]) as domain:
        filled(domain)
        full = witnessed_backup(domain, repository, workspace, ask(domain.name, compression="none"))
        assert differences(domain.name, repository, full, restored) == []
        domain.write_random("vda", 30 * MIB, 65536, 3)
        domain.write_zeroes("vda", 10 * MIB, MIB, unmap=True)
        folder = workspace / "second"
        folder.mkdir()
        second = witnessed_backup(domain, repository, folder, meanwhile=lambda: domain.write("vda", 0, MIB, 4))
        assert [disk.mode for disk in second.result.disks] == ["incremental"]
        assert second.result.disks[0].statistics.new_bytes == 65536
        assert differences(domain.name, repository, second, restored, "qcow2") == []
        assert differences(domain.name, repository, full, restored) == []
    verdicts, _duration = verify(repository, VerifyRequest(wanted=ALL))
    assert [verdict.status for verdict in verdicts] == ["ok", "ok"]
    assert len(list(repository.store.list("packs"))) == 3


def test_points_in_a_locked_bucket_are_kept_and_so_is_all_they_rely_on(
    hypervisor: Hypervisor, workspace: Path, gateway: Account
) -> None:
    def lock_for(days: int) -> None:
        rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": days}}
        gateway.client().put_object_lock_configuration(
            Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
        )

    bucket = gateway.bucket(ObjectLockEnabledForBucket=True)
    lock_for(1)
    repository = repository_in(gateway, f"s3://{bucket}")
    store = repository.store
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB)]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 1)
        witnessed_backup(domain, repository, workspace)
        (pack,) = store.list("packs")
        first = store.locked_until(pack)
        lock_for(30)
        domain.write_random("vda", MIB, MIB, 2)
        folder = workspace / "second"
        folder.mkdir()
        second = witnessed_backup(domain, repository, folder)
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, second, restored) == []
    point = second.result.point
    assert point is not None and first is not None
    kept = store.locked_until(point.object_name(point.disks[0].map))
    assert kept is not None and kept > first + 28 * 86400
    assert store.locked_until(pack) == kept
    assert all(store.locked_until(name) is not None for name in [*store.list("packs"), *store.list("points")])


def test_retention_keeps_what_is_locked_until_its_date_and_removes_it_then(
    hypervisor: Hypervisor, workspace: Path, gateway: Account
) -> None:
    """The bucket's rule locks for days; a privileged key then sets the date of what there is to some seconds from now."""
    bucket, client = gateway.bucket(ObjectLockEnabledForBucket=True), gateway.client()
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 3}}
    client.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    repository = repository_in(gateway, f"s3://{bucket}/kvm")
    place = {"repository": repository.store.location, "s3": gateway.options}

    def retention(check: bool = False) -> dict[str, t.Any]:
        told = run_module(workspace, "cbt_retention", check, **place, keep_last=1, grace=0, compact_below=50)
        assert not told.get("failed"), told
        return told

    with BlockDomain(hypervisor, [DiskSpec("vda", 32 * MIB)]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 1)
        first = witnessed_backup(domain, repository, workspace, ask(domain.name, compression="none"))
        packs = set(repository.store.list("packs"))
        domain.write_random("vda", 0, 4 * MIB, 2)
        second = run_module(workspace, "cbt_backup", domain=domain.name, **place)["restore_point"]["id"]
        assert [
            disk["mode"] for disk in run_module(workspace, "cbt_backup_info", **place)["restore_points"][0]["disks"]
        ]
        restored = workspace / "restored"
        restored.mkdir()

        for check in (True, False, False):
            told = retention(check)
            kept = {each["id"]: each["rules"] for each in told["kept"]}
            assert told["removed"] == [] and kept == {first.id: ["locked"], second: ["last"]}
        assert differences(domain.name, repository, first, restored) == []
        assert packs <= set(repository.store.list("packs"))

        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=12)
        versions = [
            each
            for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket)
            for each in page.get("Versions", [])
        ]
        for each in versions:
            client.put_object_retention(
                Bucket=bucket, Key=each["Key"], VersionId=each["VersionId"], BypassGovernanceRetention=True,
                Retention={"Mode": "GOVERNANCE", "RetainUntilDate": ends},
            )  # fmt: skip
        assert [each["id"] for each in retention(check=True)["removed"]] == [], "not before its date"
        wait_until(lambda: datetime.datetime.now(datetime.UTC) > ends, 60, "the end of the lock")
        for left in [*repository.store.list("leases"), *repository.store.list("drafts")]:  # half an hour later
            client.delete_object(Bucket=bucket, Key=f"kvm/{left}")
        assert [each["id"] for each in retention()["removed"]] == [first.id]
        assert [point.id for point in repository.points_of().points] == [second]
        # The store tells times by the second, so what was removed in this one was not over yet.
        assert retention()["removed"] == []
        assert not packs & set(repository.store.list("packs"))
        there = [
            each
            for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket)
            for each in page.get("Versions", [])
        ]
        assert not [each["Key"] for each in there if first.id in each["Key"] and "/points/" in each["Key"]]
        assert (
            run_module(workspace, "cbt_verify", **place, restore_points=["all"])["restore_points"][0]["status"] == "ok"
        )


def test_a_server_that_dies_during_a_backup_publishes_nothing_and_the_next_run_is_incremental(
    hypervisor: Hypervisor, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 3)
    with Rclone() as server, BlockDomain(hypervisor, [DiskSpec("vda", 128 * MIB)]) as domain:
        repository = repository_in(server.account, f"s3://{server.account.bucket()}/kvm")
        filled(domain)
        backup(session_of(domain), repository, ask(domain.name))
        points = [point.id for point in repository.points_of().points]
        checkpoints = domain.checkpoints()
        filled(domain)
        domain.write_random("vda", 2 * MIB, 90 * MIB, 5)

        def kill(progress: Progress) -> None:
            if progress.phase == "reading":
                server.kill()

        with pytest.raises(
            RepositoryError,
            match=r"Cannot (read|write) s3://.*/packs/.*: Could not connect to the endpoint.*Check endpoint_url",
        ):
            backup(session_of(domain), repository, ask(domain.name, compression="none"), control=Control(kill))
        assert domain.checkpoints() == checkpoints and not domain.job_running()
        server.start()
        assert [point.id for point in repository.points_of().points] == points
        after = witnessed_backup(domain, repository, workspace)
        assert [disk.mode for disk in after.result.disks] == ["incremental"]
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, after, restored) == []


def _everywhere(secret: str) -> list[str]:
    """Processes in whose arguments a secret is."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if secret.encode() in words:
                found.append(words.decode())
    return found


def test_modules_read_credentials_from_options_environment_and_profile_and_reveal_no_secret(
    hypervisor: Hypervisor, workspace: Path, rclone: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    location = f"s3://{rclone.bucket()}/kvm"
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB)]) as domain:
        domain.write_random("vda", 0, MIB, 1)
        run = ModuleProcess(
            workspace,
            "cbt_backup",
            {"domain": domain.name, "repository": location, "s3": rclone.options, "create_repository": True},
        )
        shown = _everywhere(rclone.secret_key)
        while run.process.poll() is None and not shown:
            shown = _everywhere(rclone.secret_key)
        out, err = run.process.communicate()
        assert shown == []
        told = json.loads(out)
        assert not told.get("failed"), told
        assert rclone.secret_key.encode() not in out + err
        point = told["restore_point"]["id"]

    def points(**options: t.Any) -> list[str]:
        answer = run_module(workspace, "cbt_backup_info", repository=location, **options)
        assert not answer.get("failed"), answer
        return [each["id"] for each in answer["restore_points"]]

    without_key = {"endpoint_url": rclone.endpoint}
    refused = run_module(workspace, "cbt_backup_info", repository=location, s3=without_key)
    assert "Unable to locate credentials. Check access_key and secret_key" in refused["msg"]

    profile = tmp_path / "credentials"
    profile.write_text(
        f"[backups]\naws_access_key_id = {rclone.access_key}\naws_secret_access_key = {rclone.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    assert points(s3={**without_key, "profile": "backups"}) == [point]

    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE")
    for name, value in zip(VARIABLES, (rclone.access_key, rclone.secret_key, rclone.endpoint)):
        monkeypatch.setenv(name, value)
    assert points() == [point]
    verified = run_module(workspace, "cbt_verify", repository=location)
    assert [each["status"] for each in verified["restore_points"]] == ["ok"]


def test_modules_report_a_missing_bucket_and_a_wrong_key(workspace: Path, account: Account) -> None:
    missing = run_module(workspace, "cbt_backup_info", repository="s3://lab-never-made/kvm", s3=account.options)
    assert missing["failed"] and "NoSuchBucket" in missing["msg"] and "Create the bucket" in missing["msg"]
    wrong = run_module(
        workspace,
        "cbt_backup_info",
        repository=f"s3://{account.bucket()}",
        s3={**account.options, "secret_key": "not-the-secret"},
    )
    assert wrong["failed"] and "SignatureDoesNotMatch" in wrong["msg"] and "not-the-secret" not in json.dumps(wrong)
    empty = run_module(workspace, "cbt_backup_info", repository=f"s3://{account.bucket()}", s3=account.options)
    assert empty["failed"] and "There is no repository in s3://" in empty["msg"]


def test_a_bucket_with_other_objects_is_not_used(account: Account) -> None:
    bucket = account.bucket()
    account.client().put_object(Bucket=bucket, Key="backups/photos/cat.jpg", Body=b"x")
    with pytest.raises(
        RepositoryError, match=r"s3://.*/backups is not a repository: it has files but no repository.json"
    ):
        repository_in(account, f"s3://{bucket}/backups")
    assert repository_in(account, f"s3://{bucket}/backups/kvm").id
    assert (
        os.path.basename(account.client().list_objects_v2(Bucket=bucket, Prefix="backups/kvm/")["Contents"][0]["Key"])
        == "repository.json"
    )
