#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_repository
short_description: Create a repository for restore points, change its passphrases, make its lost configuration again
version_added: 0.1.0
description:
  - Creates a repository, encrypted if O(passphrase) is given. Whether it is encrypted cannot be changed later.
  - Create a repository once, before the first backup, with its share mounted. Several hosts may do so at the same time.
  - If the repository that this host knows is missing, was replaced by another one or went back to an older state, the task fails and creates nothing,
    see O(accept_repository).
    The task fails as well if C(/etc/fstab) names a mount point above O(repository) that is not mounted.
  - A passphrase opens a key slot, which holds the key of everything else. Up to 8 slots, each with a passphrase of its own, can be kept.
  - Changing a passphrase writes the repository's configuration and nothing else, whatever the size of the repository.
    Backups that run meanwhile are not disturbed.
  - Who had both the old passphrase and a copy of C(repository.json) keeps access to what they can reach.
    Where that matters, create a new repository and copy the restore points.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._repository
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Lists the names of the key slots.
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) has a repository with the key slots asked for.
    type: str
    choices: [present]
    default: present
  new_passphrase:
    description:
      - Passphrase that is to open O(slot). The slot is added, or its passphrase changed, if it does not.
      - O(passphrase) may be the one before or any other that opens the repository, and may be left out once O(new_passphrase) does.
    type: str
  slot:
    description:
      - Name of the key slot that O(new_passphrase) is to open. A new repository's passphrase goes to it as well.
    type: str
    default: default
  remove_slots:
    description:
      - Names of key slots to be removed. A slot has to remain that a passphrase given here opens.
    type: list
    elements: str
    default: []
  rebuild:
    description:
      - If C(repository.json) is missing or damaged, make it again from the restore points' manifests, which name the repository they belong to.
        While it is sound, nothing is done. Other objects that were lost need nothing of the kind.
      - That of an encrypted repository cannot be made again, for it holds the only copies of the key, so keep a copy of it elsewhere.
        Without a passphrase it is of no use to anybody.
    type: bool
    default: false
seealso:
  - module: kvm.cbt.cbt_backup
  - module: kvm.cbt.cbt_backup_info
  - module: kvm.cbt.cbt_repository_info
"""

EXAMPLES = r"""
- name: Create a repository
  kvm.cbt.cbt_repository:
    repository: /backup/kvm

- name: Create an encrypted repository
  kvm.cbt.cbt_repository:
    repository: /backup/kvm
    passphrase: "{{ cbt_passphrase }}"

- name: Change the passphrase
  kvm.cbt.cbt_repository:
    repository: /backup/kvm
    passphrase: "{{ cbt_passphrase_before }}"
    new_passphrase: "{{ cbt_passphrase }}"

- name: Have a second passphrase for emergencies, and remove that of somebody who left
  kvm.cbt.cbt_repository:
    repository: /backup/kvm
    passphrase: "{{ cbt_passphrase }}"
    new_passphrase: "{{ cbt_emergency_passphrase }}"
    slot: emergency
    remove_slots: [alice]

- name: Accept a repository that was restored from an older copy
  kvm.cbt.cbt_repository:
    repository: /backup/kvm
    accept_repository: true

- name: Make the lost configuration of a repository again that is not encrypted
  kvm.cbt.cbt_repository:
    repository: /backup/kvm
    rebuild: true
"""

RETURN = r"""
repository:
  description: The repository as it is now, or would be.
  returned: always
  type: dict
  contains:
    id:
      description: Its id. One that would be created has none yet.
      type: str
      sample: 6a23e5f9b1c04f7e8d2a3b4c5d6e7f80
    format:
      description: Version of the repository's format.
      type: int
      sample: 1
    encrypted:
      description: Whether it is encrypted.
      type: bool
      sample: true
    slots:
      description: Names of its key slots.
      type: list
      elements: str
      sample: [default, emergency]
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _module
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.keys import KeyChange, KeyRequest, arrange
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.repository.format.configuration import FORMAT, Configuration


def _shown(configuration: Configuration | None, before: Configuration | None = None) -> dict[str, object]:
    """A configuration for a person's eyes, telling which slots are others than before."""
    if configuration is None:
        return {}
    known = before.slots if before is not None else configuration.slots
    slots = [
        name if known.get(name, slot) == slot else f"{name} (passphrase changed)"
        for name, slot in configuration.slots.items()
    ]
    return {"encrypted": configuration.encrypted, "slots": sorted(slots)}


def _outcome(change: KeyChange, check_mode: bool) -> dict[str, object]:
    after = change.after
    known = change.before is not None or change.rebuilt or not check_mode
    facts = {
        "id": after.id if known else None,
        "format": FORMAT,
        "encrypted": after.encrypted,
        "slots": sorted(after.slots),
    }
    return {
        "changed": change.changed,
        "repository": facts,
        "diff": {"before": _shown(change.before), "after": _shown(after, change.before)},
    }


def main() -> None:
    """Run the module."""
    module = _module.Module(
        argument_spec={
            **_module.REPOSITORY,
            "state": {"type": "str", "choices": ["present"], "default": "present"},
            "new_passphrase": {"type": "str", "no_log": True},
            "slot": {"type": "str", "default": "default"},
            "remove_slots": {"type": "list", "elements": "str", "default": []},
            "rebuild": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    request = KeyRequest(params["new_passphrase"], params["slot"], tuple(params["remove_slots"]), params["rebuild"])
    with _module.reported(module):
        change = arrange(_module.place(module), request, module.check_mode, _module.watching(module))
    module.exit_json(**_outcome(change, module.check_mode))


if __name__ == "__main__":
    main()
