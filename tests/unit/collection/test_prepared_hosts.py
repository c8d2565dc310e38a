# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A playbook whose pattern matches no host fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleLookupError
from ansible.parsing.dataloader import DataLoader

ROOT = Path(__file__).resolve().parents[3]
GROUPS = {"all": ["kvm1", "kvm2", "web1"], "ungrouped": ["web1"], "hypervisors": ["kvm1", "kvm2"], "empty": []}


def look_up(*terms: Any, **variables: Any) -> list[str]:
    """Run the lookup with an inventory."""
    spec = importlib.util.spec_from_file_location("hosts", ROOT / "plugins/lookup/hosts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.LookupModule(loader=DataLoader()).run(list(terms), {"groups": GROUPS, **variables})
    return found


@pytest.mark.parametrize(
    ("pattern", "limit"),
    [
        ("hypervisors", None),
        ("all", None),
        ("kvm*:!kvm1", None),
        ("hypervisors", "kvm1"),
        ("hypervisors", "kvm*:!kvm1"),
        ("localhost", None),
    ],
)
def test_a_pattern_that_matches_hosts_is_returned(pattern: str, limit: str | None) -> None:
    assert look_up(pattern, **({"ansible_limit": limit} if limit else {})) == [pattern]


def test_a_list_of_patterns_is_joined() -> None:
    assert look_up(["kvm1", "kvm2"]) == ["kvm1,kvm2"]


@pytest.mark.parametrize(
    ("pattern", "limit", "told"),
    [
        ("hypervizors", None, "matches hypervizors. Add the hypervisors to the group"),
        ("empty", None, "matches empty"),
        ("hypervisors:!kvm*", None, "matches hypervisors:!kvm"),
        ("hypervisors", "web1", "matches hypervisors within the limit web1"),
    ],
)
def test_a_pattern_that_matches_no_host_is_an_error(pattern: str, limit: str | None, told: str) -> None:
    with pytest.raises(AnsibleLookupError, match="No host of the inventory " + told.replace("*", "[*]")):
        look_up(pattern, **({"ansible_limit": limit} if limit else {}))


@pytest.mark.parametrize("path", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.stem)
def test_every_play_of_the_collection_checks_that_hosts_match(path: Path) -> None:
    hosts = {play["hosts"] for play in yaml.safe_load(path.read_text())}
    assert hosts == {"{{ lookup('kvm.cbt.hosts', cbt_hosts | default('hypervisors')) }}"}


@pytest.mark.parametrize("path", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.stem)
def test_every_role_of_a_playbook_has_its_name_as_tag_and_the_summary_always_runs(path: Path) -> None:
    for task in (task for play in yaml.safe_load(path.read_text()) for task in play["tasks"]):
        included = task["ansible.builtin.include_role"]
        role = included["name"].removeprefix("kvm.cbt.")
        assert task["tags"] == included["apply"]["tags"] == ["always" if role == "summary" else role]
