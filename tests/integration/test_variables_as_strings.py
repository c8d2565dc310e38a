# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role with every variable as a string, as surveys and ``-e`` provide them."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import libvirt
import yaml
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from module_process import run_module
from plays import Play
from restored import new_name, removed
from tools.role_readmes import ROLES, spec_of

from _cbt.hypervisor.connection import connect

ORDER = [
    "prepare",
    "apparmor",
    "nbd_tls",
    "backup",
    "reconcile",
    "verify",
    "restore",
    "disaster_recovery",
    "qcow2_v3",
    "retention",
    "restore_points",
    "decommission",
    "summary",
]


def as_string(value: Any) -> str:
    """A value as a survey or the command line gives it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return "" if value == {} else value if isinstance(value, str) else json.dumps(value)


def variables_of(role: str, own: dict[str, Any]) -> dict[str, str]:
    """Every variable of a role as a string: its own value, else its default."""
    defaults = yaml.safe_load((ROLES / role / "defaults/main.yml").read_text())
    known = spec_of(ROLES / role)["options"]
    values = {name: own.get(name.removeprefix(f"{role}_"), defaults.get(name)) for name in known}
    assert set(own) <= {name.removeprefix(f"{role}_") for name in known}
    undecided = [name for name, value in values.items() if value is None or "{{" in as_string(value)]
    assert undecided == [], "each of these needs a value here"
    return {name: as_string(value) for name, value in values.items()}


def test_every_role_takes_every_variable_as_a_string(
    collections: Path, tmp_path: Path, workspace: Path, hypervisor: Hypervisor
) -> None:
    assert sorted(ORDER) == sorted(path.name for path in ROLES.iterdir())
    name, copy, network, prefix = f"[lab] {new_name()}", new_name(), new_name(), "rehearsal-"
    profiles = shutil.copytree("/etc/apparmor.d", tmp_path / "apparmor.d")
    with (
        BlockDomain(hypervisor, [DiskSpec("vda", 1 << 20)], name, start=False),
        BlockDomain(hypervisor, [DiskSpec("vdb", 1 << 20, format="raw")], start=False) as raw,
        connect() as session,
        removed(session, copy, prefix + name),
    ):
        repository, secret = str(workspace / "repository"), tmp_path / "secret"
        secret.touch(0o600)
        secret.write_text("a passphrase\n")
        unset = dict.fromkeys(("username", "password", "authfile"), "")
        common = {"uri": "qemu:///system", "log_path": str(tmp_path / "log"), **unset}
        stored = {
            "repository": repository,
            "s3": {},
            "passphrase": "a passphrase",
            "passphrase_file": "",
            "passphrase_command": "",
            "accept_repository": True,
            "log_path": str(tmp_path / "log"),
        }
        chosen = {"domains": [name, f"{raw.name[:-1]}?"], "exclude_domains": ["no-such", "[x]"]}
        clustered = {**chosen, "cluster": ["all", "hypervisor1"]}
        files = {"dest": str(workspace), "trust_definition": False}
        own: dict[str, dict[str, Any]] = {
            "prepare": {
                **common,
                **stored,
                "domains": chosen["domains"],
                "features": ["encryption"],
                "install": False,
                "firewall": ["nbd", "libvirt_tls"],
                "scratch_dir": str(workspace / "scratch"),
            },
            "apparmor": {"folder": str(profiles), "scratch_dirs": ["/var/tmp", "/srv/scratch"], "reload": False},
            "nbd_tls": {
                "kinds": ["client"],
                "addresses": ["127.0.0.1"],
                "ca_folder": str(tmp_path / "ca"),
                "ca_passphrase": "a passphrase",
                "ca_in_container": True,  # as the tests may be
                "server_folder": str(tmp_path / "server"),
                "client_folder": str(tmp_path / "client"),
                "qemu_conf": str(tmp_path / "qemu.conf"),
                "revoked": ["hypervisor10"],  # the name of the host is a part of it
                "group": "root",
                "restart": False,
            },
            "backup": {
                **common,
                **stored,
                **clustered,
                "workers": 2,
                "tags": {"why": "a test"},
                "options": {"pin": True},
            },
            "reconcile": {**common, **stored, **clustered},
            "verify": {**stored, **chosen, "workers": 2, "passphrase": "", "passphrase_file": str(secret)},
            "restore": {
                **common,
                **stored,
                **files,
                # Its own setting wins over the time of all machines.
                "machines": [{"domain": name, "new_name": copy, "restore_point": "latest"}],
                "until": "2000-01-01",
                "workers": 2,
                "options": {"autostart": False},
            },
            "disaster_recovery": {
                **common,
                **stored,
                **files,
                "machines": [{"name": name, "start": "no", "after": "", "restore_point": "latest"}],
                "until": "2000-01-01",
                "rehearsal": True,
                "rehearsal_network": network,
            },
            "qcow2_v3": {**common, **clustered, "scratch_dir": str(workspace)},
            "retention": {
                **stored,
                **chosen,
                "keep_last": 1,
                "compact_below": 50,
                "passphrase": "",
                "passphrase_command": f"cat {secret}",
            },
            "restore_points": {**stored, "each": True},
            "decommission": {
                **common,
                **stored,
                "domains": [name, raw.name],
                "cluster": clustered["cluster"],
                "restore_points": "remove",
            },
            "summary": {},
        }
        given = {name: value for role in ORDER for name, value in variables_of(role, own[role]).items()}
        play = Play(
            collections, tmp_path, "hypervisor1 ansible_connection=local ansible_python_interpreter=/usr/bin/python3"
        )
        try:
            # A warning says that there is no certificate to revoke.
            printed = play.run(",".join(f"role:kvm.cbt.{role}" for role in ORDER), given, warns="hypervisor10")
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                made = session.api.networkLookupByName(network)
                made.destroy()
                made.undefine()
        points = run_module(workspace, "cbt_backup_info", repository=repository, passphrase="a passphrase")
        assert {point["domain"]: point["tags"] for point in points["restore_points"]} == {
            name: {"why": "a test"},
            raw.name: {"why": "a test"},
        }
        assert all(point["pinned"] for point in points["restore_points"])
        assert {copy, prefix + name} <= {each.name for each in session.domains()}
        assert (tmp_path / "client/client-key.pem").exists()
        assert raw.image("vdb").suffix == ".qcow2"
        assert all(
            f"{step} on hypervisor1: " in printed for step in ("backup", "reconcile", "verify", "restore", "retention")
        )
