# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules as playbooks use them: every target of `targets` in the form that ansible-test knows, run by Ansible itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab.hypervisor import Hypervisor
from plays import COMPLAINT, run_playbook

TESTS = Path(__file__).resolve().parents[1]
TARGETS = TESTS / "integration/targets"
NAMES = sorted(folder.name for folder in TARGETS.iterdir() if not folder.name.startswith("setup_"))
TIME_LIMIT = 600


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["run", "check"])
@pytest.mark.parametrize("target", NAMES)
def test_target(
    target: str, options: tuple[str, ...], collections: Path, hypervisor: Hypervisor, tmp_path: Path
) -> None:
    playbook = tmp_path / "playbook.yml"
    play = {"hosts": "testhost", "gather_facts": False, "roles": [target]}
    playbook.write_text(json.dumps([play]))
    done = run_playbook(["-i", _inventory(tmp_path), *options, playbook], collections, tmp_path, TIME_LIMIT)
    if done.returncode != 0:
        pytest.fail(done.stdout, pytrace=False)
    complaints = COMPLAINT.findall(done.stdout)
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def _inventory(folder: Path) -> Path:
    # Modules run with the Python that hypervisors have, not with that of the tests.
    path = folder / "inventory"
    path.write_text("testhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n")
    return path
