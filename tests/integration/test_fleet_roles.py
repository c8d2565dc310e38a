# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles of every night, and restore, over several hosts: what fails is told at the end and keeps nothing else from being done."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import libvirt
import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from module_process import created, run_module
from plays import Play, chroot
from restored import new_name, removed

from _cbt.hypervisor.connection import connect

MIB = 1 << 20
LOCAL = "ansible_connection=local ansible_python_interpreter=/usr/bin/python3"
TWO = f"kvm1 {LOCAL}\nkvm2 {LOCAL}"  # both are this machine, so that each domain is on two hosts
DEAD = 'dead ansible_host=127.0.0.1 ansible_port=9 ansible_ssh_common_args="-o ConnectTimeout=2"'


class Fleet:
    """Domains of one disk each, a repository, and hosts to run playbooks on."""

    def __init__(
        self, collections: Path, folder: Path, workspace: Path, hypervisor: Hypervisor, stack: ExitStack
    ) -> None:
        self._collections, self._folder, self._hypervisor, self._stack = collections, folder, hypervisor, stack
        self.repository = workspace / "repository"
        self.workspace = workspace

    def create(self, **options: Any) -> None:
        """Create the repository."""
        created(self.workspace, self.repository, **options)

    def domain(self, start: bool = True) -> BlockDomain:
        return self._stack.enter_context(BlockDomain(self._hypervisor, [DiskSpec("vda", 4 * MIB)], start=start))

    def play(self, hosts: str = TWO) -> Play:
        return Play(self._collections, self._folder, hosts)

    def points(self) -> list[dict[str, Any]]:
        """The restore points of the repository."""
        found: list[dict[str, Any]] = run_module(self.workspace, "cbt_backup_info", repository=str(self.repository))[
            "restore_points"
        ]
        return found

    def variables(self, *domains: str, **more: Any) -> dict[str, Any]:
        return {"cbt_repository": str(self.repository), "cbt_domains": list(domains), **more}


@pytest.fixture
def fleet(collections: Path, tmp_path: Path, workspace: Path, hypervisor: Hypervisor) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(collections, tmp_path, workspace, hypervisor, stack)


def summed_up(printed: str) -> list[str]:
    """The lines of the summary, of which there must be one."""
    found: list[str] = re.findall(r'"msg": (\[\n.*?\n    \]|\[\])', printed, re.DOTALL)
    assert len(found) == 1, printed
    lines: list[str] = json.loads(found[0])
    return lines


def test_a_night_over_hosts_of_which_one_is_dead_and_domains_of_which_one_fails(fleet: Fleet) -> None:
    good, off, bad, excluded, other = (
        fleet.domain(),
        fleet.domain(start=False),
        fleet.domain(start=False),
        fleet.domain(),
        fleet.domain(),
    )
    lost = bad.image("vda").rename(bad.image("vda").with_suffix(".lost"))
    pattern = f"{good.name[:-1]}?"
    variables = fleet.variables(
        pattern, off.name, bad.name, excluded.name, "no-such", cbt_exclude_domains=[f"{excluded.name[:-2]}*"]
    )

    for options in (("--check",), ()):  # there is no repository
        lines = summed_up(
            fleet.play().run(
                "kvm.cbt.site", {**variables, "retention_keep_last": 1}, *options, fails="Some steps failed"
            )
        )
        assert any(
            line.startswith(f"backup on kvm1: FAILED: {good.name}: There is no repository in {fleet.repository}: ")
            for line in lines
        )
        assert options or f"reconcile on kvm1: FAILED: There is no repository in {fleet.repository}" in str(lines)
    assert not fleet.repository.exists() and good.checkpoints() == []
    fleet.create()
    check = summed_up(fleet.play().run("kvm.cbt.backup", variables, "--check", fails="Some steps failed"))
    assert f"backup on kvm1: {good.name}: would examine 4.0 MiB: vda full" in check
    assert fleet.points() == [] and good.checkpoints() == []

    lines = summed_up(fleet.play(f"{TWO}\n{DEAD}").run("kvm.cbt.backup", variables, fails="Some steps failed"))
    assert sum("vda full" in line for line in lines) == 2 and not any(
        excluded.name in line or other.name in line for line in lines
    )
    assert any(line.startswith(f"backup on kvm1: FAILED: {bad.name}: ") for line in lines)
    assert any(line.startswith("backup on dead: UNREACHABLE: ") for line in lines)
    assert "backup: MISSING: no-such was not found on any host in this play" in lines
    assert sorted(point["domain"] for point in fleet.points()) == sorted([good.name, off.name])

    lost.rename(bad.image("vda"))
    variables["cbt_domains"].remove("no-such")
    [serving] = good.checkpoints()
    good.handle.checkpointLookupByName(serving).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    night = {**variables, "retention_keep_last": 1, "verify_restore_points": ["all"]}
    lines = summed_up(fleet.play().run("kvm.cbt.site", night))
    reconciled = {line.split(": ")[1]: line.split(": ")[2] for line in lines if line.startswith("reconcile on kvm1: ")}
    assert reconciled == {good.name: f"redefine checkpoint {serving}", off.name: "in order", bad.name: "in order"}
    assert not any("on kvm2" in line for line in lines)
    assert sorted(point["domain"] for point in fleet.points()) == sorted([good.name, off.name, bad.name])
    for step, told in (("verify", "restore points are intact"), ("retention", "1 kept")):
        assert sum(line.startswith(f"{step} on kvm1: ") and told in line for line in lines) == 3
    reclaimed = [line for line in lines if line.startswith("retention on ") and "reclaimed" in line]
    assert [line.rpartition(":")[0] for line in reclaimed] == ["retention on kvm1: reclaimed space"]

    limited = {**variables, "cbt_domains": [good.name, off.name, "on-kvm2-perhaps"]}
    assert fleet.play().changed("kvm.cbt.reconcile", limited, "--limit", "kvm1") == 0


def registered(printed: Path, host: str) -> dict[str, dict[str, Any]]:
    """What the roles registered on a host."""
    found: dict[str, dict[str, Any]] = json.loads((printed / host).read_text())
    return found


def test_one_host_of_a_repository_lists_its_restore_points_and_the_others_return_its_id(
    fleet: Fleet, tmp_path: Path
) -> None:
    fleet.create()
    domain = fleet.domain(start=False)
    run_module(fleet.workspace, "cbt_backup", repository=str(fleet.repository), domain=domain.name)
    roles = ("verify", "retention", "decommission")
    save = {
        "content": "{{ dict(names | zip(query('ansible.builtin.vars', *names))) | to_json }}",
        "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}",
    }
    pattern = f"^({'|'.join(roles)})_(found|store|points|outcome|removed)$"
    task = {
        "ansible.builtin.copy": save,
        "vars": {"names": f"{{{{ query('ansible.builtin.varnames', '{pattern}') }}}}"},
    }
    playbook = tmp_path / "upkeep.yml"
    named = [f"kvm.cbt.{role}" for role in roles]
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": named, "post_tasks": [task]}]))
    variables = fleet.variables(retention_keep_last=1, decommission_domains=[domain.name])
    fleet.play().run(str(playbook), {**variables, "decommission_restore_points": "remove"})
    lists, others = registered(tmp_path, "kvm1"), registered(tmp_path, "kvm2")
    listed = {name for name, result in lists.items() if "restore_points" in result}
    assert listed == {f"{role}_points" for role in roles} and listed < set(others)
    for name in ("verify_found", "retention_found", "decommission_store"):
        assert others[name]["repository"] == lists[name]["repository"]
    for name, result in others.items():
        assert not {"restore_points", "sizes", "outcomes"} & set(result) or not result.get("outcomes", True), name
        assert len(json.dumps(result)) < 600, (name, result)
    assert fleet.points() == []


FRAGILE = """
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import local

DOCUMENTATION = '''
name: fragile
short_description: A local connection that is lost for good when the first restore point of a domain is there
description: As it says.
extends_documentation_fragment: connection_pipelining
'''


class Connection(local.Connection):
    transport = "fragile"

    def exec_command(self, *args, **kwargs):
        if any(__import__("pathlib").Path("POINTS").glob("*/manifest.json")):
            raise AnsibleConnectionFailure("gone")
        return super().exec_command(*args, **kwargs)
"""


def test_a_host_lost_in_the_middle_does_not_stop_the_others_and_is_made_up_for(fleet: Fleet, tmp_path: Path) -> None:
    first, second, third, other = sorted((fleet.domain() for _number in range(4)), key=lambda domain: domain.name)
    # Of this very domain: the other host, which may be faster, stores its point beside it.
    (tmp_path / "fragile.py").write_text(
        FRAGILE.replace("POINTS", f"{fleet.repository}/points/{first.handle.UUIDString()}")
    )
    (tmp_path / "ansible.cfg").write_text(f"[defaults]\nconnection_plugins = {tmp_path}\n")
    own = f"""cbt_domains='{json.dumps([first.name, second.name, third.name])}'"""
    theirs = f"""cbt_domains='{json.dumps([other.name])}'"""
    variables = {"cbt_repository": str(fleet.repository), "backup_parallel": 1}

    fleet.create()
    hosts = f"kvm1 {LOCAL.replace('local', 'fragile')} {own}\nkvm2 {LOCAL} {theirs}"
    lines = summed_up(fleet.play(hosts).run("kvm.cbt.backup", variables, fails="Some steps failed"))
    assert any(line.startswith("backup on kvm1: LOST: ") and "gone" in line for line in lines)
    # What became of it may have been heard at the last moment.
    (about,) = (line for line in lines if first.name in line)
    assert about.startswith(f"backup on kvm1: FAILED: {first.name}: ") or "vda full" in about
    assert f"backup on kvm1: FAILED: {third.name}: not started: the host was lost" in lines
    assert any(line.startswith(f"backup on kvm2: {other.name}: ") and "vda full" in line for line in lines)

    lines = summed_up(fleet.play(f"kvm1 {LOCAL} {own}\nkvm2 {LOCAL} {theirs}").run("kvm.cbt.backup", variables))
    assert len(lines) == 4
    assert {point["domain"] for point in fleet.points()} == {domain.name for domain in (first, second, third, other)}


def test_machines_come_back_on_the_hosts_they_are_given(fleet: Fleet) -> None:
    domain, name = fleet.domain(), new_name()
    domain.write("vda", 0, MIB, 1)
    secret = {"passphrase": "a passphrase nobody sees"}
    fleet.create(**secret)
    assert run_module(fleet.workspace, "cbt_backup", domain=domain.name, repository=str(fleet.repository), **secret)[
        "changed"
    ]
    variables = {
        "cbt_repository": str(fleet.repository),
        "cbt_passphrase": secret["passphrase"],
        "restore_dest": str(fleet.workspace),
        "restore_start": "yes",
    }
    fleet.play().run(
        "kvm.cbt.restore", {**variables, "restore_machines": f"{domain.name},other"}, fails="limit the play to one"
    )

    copy = {"domain": domain.name, "new_name": name, "host": "kvm2"}
    wanted = {**variables, "restore_machines": json.dumps([copy, {"domain": "no-such", "host": "kvm1"}])}
    assert f"would restore {name} of" in fleet.play().run("kvm.cbt.restore", wanted, "--check", "--limit", "kvm2")
    with connect() as session, removed(session, name):
        printed = fleet.play().run("kvm.cbt.restore", wanted, "-vvv", fails="Some steps failed")
        assert secret["passphrase"] not in printed
        assert session.api.lookupByName(name).isActive()
        assert (fleet.workspace / f"{name}-vda.qcow2").exists()
        image = (fleet.workspace / f"{name}-vda.qcow2").stat().st_ino
        again = summed_up(fleet.play().run("kvm.cbt.restore", {**variables, "restore_machines": json.dumps([copy])}))
        assert again == [f"restore on kvm2: {name}: skipped: {name} exists already."]
        assert (fleet.workspace / f"{name}-vda.qcow2").stat().st_ino == image
    assert re.search(r"restore on kvm1: FAILED: no-such: .* holds no restore point", printed)
    assert f"restore on kvm2: {name}: {name} of " in printed


def test_a_run_without_hosts_a_repository_or_steps_fails_and_says_what_to_set(fleet: Fleet) -> None:
    play = fleet.play()
    play.run(
        "kvm.cbt.backup",
        {"cbt_hosts": "hypervizors"},
        fails="No host of the inventory matches hypervizors.",
        warns="hypervizors",
    )
    play.run("kvm.cbt.backup", {}, fails="No repository is set. Set cbt_repository to its absolute path on the hosts")
    play.run("kvm.cbt.site", {}, "--tags", "bakup", fails="None of the steps reconcile, backup, restore")


def test_every_playbook_can_be_checked_on_a_host_where_nothing_is_installed(
    collections: Path, tmp_path: Path, workspace: Path
) -> None:
    with chroot(workspace) as root:
        play = Play(
            collections,
            tmp_path,
            f"{root} ansible_connection=community.general.chroot ansible_python_interpreter=/usr/bin/python3",
        )
        variables = {
            "cbt_repository": "/backup",
            "cbt_passphrase": "secret",
            "retention_keep_last": 1,
            "restore_machines": [],
            "decommission_domains": "web1",
        }
        others = ("kvm.cbt.restore", "kvm.cbt.restore_points", "kvm.cbt.decommission")
        printed = play.run("kvm.cbt.site", variables, "--check", *others)
        assert printed.count("required Python library") >= 2
        assert not (root / "backup").exists()
