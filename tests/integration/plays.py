# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible as people run it, with this collection."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab.process import run_tool
from lab.tree import bare_tree

# What Ansible finds fault with, but not what cbt_backup has to tell of these domains.
COMPLAINT = re.compile(
    r"^\[(?:DEPRECATION )?WARNING\]: (?!Cannot track vdb: |The backup of .+ is only crash-consistent: ).*",
    re.MULTILINE,
)


def environment(collections: Path, folder: Path) -> dict[str, str]:
    """Ansible's environment, with its settings in a folder."""
    # A file of settings that is the machine's own must not decide.
    foreign = [name for name in os.environ if name.startswith("ANSIBLE_")]
    settings = folder / "ansible.cfg"
    settings.touch()
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {
        **kept,
        "ANSIBLE_CONFIG": str(settings),
        "ANSIBLE_COLLECTIONS_PATH": str(collections.parents[2]),
        "ANSIBLE_ROLES_PATH": str(collections / "tests/integration/targets"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "LC_ALL": "C.UTF-8",
    }


def run_playbook(
    words: Sequence[str | Path], collections: Path, folder: Path, timeout: float = 900, within: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in a folder to its end, whatever it ends with; `within` is a command that runs it elsewhere."""
    return subprocess.run(
        [*within, Path(sys.executable).with_name("ansible-playbook"), *words],
        cwd=folder,
        env=environment(collections, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


class Play:
    """Runs playbooks of the collection, or one role, on one host or more; `within` is a command that runs them elsewhere."""

    def __init__(
        self,
        collection: Path,
        folder: Path,
        host: str = "testhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3",
        within: Sequence[str] = (),
    ) -> None:
        self._collection = collection
        self._folder = folder
        self._within = within
        self._inventory = folder / "inventory"
        self._inventory.write_text(f"[hypervisors]\n{host}\n")  # the group that playbooks run on

    def run(
        self, what: str, variables: dict[str, Any], *options: str, fails: str | None = None, warns: str = ""
    ) -> str:
        """Run a playbook by its full name, or roles by `role:`, separated by commas; what Ansible printed.

        `fails` is what it is to fail with, `warns` may be warned of.
        """
        playbook = what
        if what.startswith("role:"):
            path = self._folder / "role.yml"
            roles = [each.removeprefix("role:") for each in what.split(",")]
            path.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": roles}]))
            playbook = str(path)
        words = ["-i", self._inventory, "-e", json.dumps(variables), *options, playbook]
        done = run_playbook(words, self._collection, self._folder, within=self._within)
        complaints = [each for each in COMPLAINT.findall(done.stdout) if not warns or warns not in each]
        if (done.returncode == 0) != (fails is None) or complaints:
            pytest.fail(done.stdout, pytrace=False)
        assert fails is None or fails in re.sub(r"\s+", " ", done.stdout), done.stdout
        return done.stdout

    def changed(self, *arguments: Any) -> int:
        """Run as above and return how many tasks changed something."""
        return int(re.findall(r"changed=(\d+)", self.run(*arguments))[-1])


@contextmanager
def chroot(folder: Path) -> Iterator[Path]:
    """The root of a host on which nothing is installed but Python, reached by community.general.chroot."""
    root = folder / "root"
    run_tool(["cp", "-a", bare_tree(), root])
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    mounted = []
    try:
        for kind, name in (("proc", "proc"), ("tmpfs", "dev")):
            run_tool(["mount", "-t", kind, kind, root / name])
            mounted.append(root / name)
        # Devices of its own: should the folder be removed before it is unmounted, this machine's are not in it.
        for name, number in {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}.items():
            run_tool(["mknod", "-m", "666", root / "dev" / name, "c", "1", str(number)])
        yield root
    finally:
        for path in mounted:
            run_tool(["umount", path])
        shutil.rmtree(root)
