# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys and settings with which root reaches the nodes of a cluster, and they one another."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from lab.process import run_tool

SSHD_CONFIG = Path("etc/ssh/lab_sshd_config")
_SSHD_SETTINGS = """\
HostKey /etc/ssh/lab_host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile /run/sshd.pid
Subsystem sftp internal-sftp
"""


class Ssh:
    """The keys of one cluster: one for all its nodes, one for all who may enter them."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        """Make keys and settings in `folder` for nodes of these names."""
        folder.mkdir(mode=0o700)
        self._folder = folder
        for name in ("host_key", "id_ed25519"):
            run_tool(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {name}", "-f", folder / name])
        key = (folder / "host_key.pub").read_text()
        known = "".join(f"{name},{address} {key}" for name, address in addresses.items())
        (folder / "known_hosts").write_text(known)
        self.config = folder / "config"
        self.config.write_text(_client_settings(folder, addresses))

    def install(self, root: Path) -> None:
        """Put what a node needs into a tree of files that go there."""
        home = root / "root/.ssh"
        home.mkdir(mode=0o700, parents=True)
        home.parent.chmod(0o700)
        for name in ("id_ed25519", "known_hosts"):
            shutil.copy(self._folder / name, home / name)
        shutil.copy(self._folder / "id_ed25519.pub", home / "authorized_keys")
        server = root / SSHD_CONFIG
        server.parent.mkdir(parents=True)
        server.write_text(_SSHD_SETTINGS)
        shutil.copy(self._folder / "host_key", server.parent / "lab_host_key")


def _client_settings(folder: Path, addresses: Mapping[str, str]) -> str:
    lines = []
    for name, address in addresses.items():
        lines += [f"Host {name}", f"    HostName {address}", f"    HostKeyAlias {name}"]
    lines += ["Host *", "    User root", f"    IdentityFile {folder}/id_ed25519", "    IdentitiesOnly yes"]
    lines += [f"    UserKnownHostsFile {folder}/known_hosts", "    StrictHostKeyChecking yes"]
    return "".join(f"{line}\n" for line in lines)
