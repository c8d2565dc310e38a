# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that a pattern of hosts matches hosts: for Ansible itself, a play without hosts is a success."""

from __future__ import annotations

DOCUMENTATION = """
name: hosts
short_description: Return a pattern of hosts that matches at least one host
version_added: 0.1.0
description:
  - Returns the pattern unchanged. Fails if it matches no host of the inventory, or none within C(--limit).
  - Ansible itself only warns of a play whose C(hosts) match no host, and the playbook succeeds.
author:
  - The kvm.cbt authors (@kvm-cbt)
options:
  _terms:
    description: The pattern, as for C(hosts) of a play. A list is joined.
    required: true
"""

EXAMPLES = """
- name: Back up the hypervisors
  hosts: "{{ lookup('kvm.cbt.hosts', 'hypervisors') }}"
  roles:
    - kvm.cbt.backup
"""

RETURN = """
_raw:
  description: The pattern.
  type: list
  elements: str
"""

import typing as t

from ansible import context
from ansible.errors import AnsibleLookupError
from ansible.inventory.manager import InventoryManager
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):  # type: ignore[misc]
    """Checks patterns against the groups and hosts of the inventory."""

    def run(self, terms: list[t.Any], variables: dict[str, t.Any] | None = None, **_options: t.Any) -> list[str]:
        """Return the pattern that the terms make. Fails if no host matches it."""
        known = variables or {}
        pattern = ",".join(each if isinstance(each, str) else ",".join(each) for each in terms)
        inventory = InventoryManager(self._loader, parse=False)
        for group, hosts in known["groups"].items():
            inventory.add_group(group)
            for host in hosts:
                inventory.add_host(host, group=group)
        inventory.subset(known.get("ansible_limit"))
        if not context.CLIARGS.get("syntax") and not inventory.list_hosts(pattern):
            within = f" within the limit {known['ansible_limit']}" if known.get("ansible_limit") else ""
            raise AnsibleLookupError(
                f"No host of the inventory matches {pattern}{within}."
                " Add the hypervisors to the group hypervisors, or set cbt_hosts to a group or a pattern."
            )
        return [pattern]
