# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules as playbooks use them: every target of `targets` in the form that ansible-test knows, run by Ansible itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab.hypervisor import Hypervisor

TESTS = Path(__file__).resolve().parents[1]
TARGETS = TESTS / "integration/targets"
NAMES = sorted(folder.name for folder in TARGETS.iterdir() if not folder.name.startswith("setup_"))
TIME_LIMIT = 600
# What Ansible finds fault with, but not what cbt_backup has to tell of these domains.
_COMPLAINT = re.compile(r"^\[(?:DEPRECATION )?WARNING\]: (?!Cannot track vdb: |The backup of \S+ is only crash-consistent: ).*", re.MULTILINE)


@pytest.fixture(scope="session")
def collection() -> Path:
    """A copy of this collection under the name by which Ansible finds it."""
    made = subprocess.run([TESTS / "tools/collection_tree.sh"], check=True, capture_output=True, text=True)
    return Path(made.stdout.strip())


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["run", "check"])
@pytest.mark.parametrize("target", NAMES)
def test_target(target: str, options: tuple[str, ...], collection: Path, hypervisor: Hypervisor, tmp_path: Path) -> None:
    playbook = tmp_path / "playbook.yml"
    play = {"hosts": "testhost", "gather_facts": False, "roles": [target]}
    playbook.write_text(json.dumps([play]))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", _inventory(tmp_path), *options, playbook],
        cwd=tmp_path,
        env=_environment(collection, tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(done.stdout, pytrace=False)
    complaints = _COMPLAINT.findall(done.stdout)
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def _inventory(folder: Path) -> Path:
    # Modules run with the Python that hypervisors have, not with that of the tests.
    path = folder / "inventory"
    path.write_text("testhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n")
    return path


def _environment(collection: Path, folder: Path) -> dict[str, str]:
    # A file of settings that is the machine's own must not decide.
    foreign = [name for name in os.environ if name.startswith("ANSIBLE_")]
    settings = folder / "ansible.cfg"
    settings.touch()
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {
        **kept,
        "ANSIBLE_CONFIG": str(settings),
        "ANSIBLE_COLLECTIONS_PATH": str(collection.parents[2]),
        "ANSIBLE_ROLES_PATH": str(collection / "tests/integration/targets"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "LC_ALL": "C.UTF-8",
    }
