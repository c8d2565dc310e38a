# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of roles: they authenticate to libvirt, run no program that a host may lack, and register no long lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
CREDENTIALS = ("username", "password", "authfile")
# Programs of the base system. The first two may be missing: that they cannot be run is no failure.
PROGRAMS = {"apparmor_parser", "ufw", "cat", "grep", "{{ ansible_facts['python']['executable'] }}"}


def _tasks(role: Path) -> Iterator[dict[str, Any]]:
    """Yield the tasks and handlers of a role, with those within blocks."""
    waiting = [task for path in role.glob("[th]a*/*.yml") for task in yaml.safe_load(path.read_text()) or []]
    while waiting:
        task = waiting.pop()
        waiting += [each for key in ("block", "rescue", "always") for each in task.get(key, [])]
        yield task


def _connects(module: str) -> bool:
    """Whether a module of the collection has the options of libvirt."""
    source = (ROOT / f"plugins/modules/{module.removeprefix('kvm.cbt.')}.py").read_text()
    return "**_options.LIBVIRT," in source


def _connections(role: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the options of each call of a module that connects to libvirt, and the name of the task."""
    for task in _tasks(role):
        name = next((key for key in task if key.startswith("kvm.cbt.")), None)
        if name is None:
            continue
        options = task[name]
        if name == "kvm.cbt.cbt_each":
            name = options["module"]
            given = options.get("options", {})
            # A template combines the role's options, which are a variable of the task, with the user's.
            options = given if isinstance(given, dict) else task["vars"][f"__{role.name}_options"]
        if _connects(name):
            yield task["name"], options


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_connection_to_libvirt_passes_the_credentials(role: Path) -> None:
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    for name, options in _connections(role):
        assert options["uri"] == f"{{{{ {role.name}_uri }}}}", name
        for each in CREDENTIALS:
            assert options.get(each) == f"{{{{ {role.name}_{each} | default(omit, true) }}}}", (name, each)
            assert defaults[f"{role.name}_{each}"] == f"{{{{ cbt_{each} | default('') }}}}", each


def test_the_roles_that_connect_are_known() -> None:
    connecting = {role.name for role in ROLES if list(_connections(role))}
    assert connecting == {"backup", "decommission", "disaster_recovery", "prepare", "qcow2_v3", "reconcile", "restore"}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_role_runs_no_program_that_a_host_may_lack(role: Path) -> None:
    for task in _tasks(role):
        command = task.get("ansible.builtin.command")
        if command is not None:
            words = command.split() if isinstance(command, str) else command["argv"]
            assert words[0] in PROGRAMS, task["name"]
        assert "ansible.builtin.shell" not in task or role.name == "apparmor", task["name"]


# It restores to one host, which needs the list.
LISTS = {"disaster_recovery"}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_what_every_host_registers_has_no_details_of_domains_or_of_the_repository(role: Path) -> None:
    for task in _tasks(role):
        for module in ("kvm.cbt.cbt_domain_info", "kvm.cbt.cbt_repository_info"):
            assert task.get(module, {"details": False})["details"] is False, task["name"]
        if "kvm.cbt.cbt_backup_info" in task and role.name not in LISTS:
            one_host = "inventory_hostname in ansible_play_hosts_all | kvm.cbt.first_of_repository(hostvars, "
            assert task["when"].startswith(one_host), task["name"]
