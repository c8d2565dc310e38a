#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_repository
short_description: Create a repository for restore points, change its passphrases, or recreate its configuration
version_added: 0.1.0
description:
  - Creates a repository. It is encrypted if O(passphrase) is given. Encryption cannot be changed later.
  - Create a repository once, before the first backup, with its share mounted. Several hosts may run this at the same
    time.
  - If the repository that this host knows is missing, was replaced by another one or went back to an older state, the
    task fails and creates nothing. See O(accept_repository).
  - The task also fails if C(/etc/fstab) names a mount point above O(repository) that is not mounted.
  - A passphrase opens a key slot, which holds the key to everything else. There can be up to 8 slots, each with its own
    passphrase.
  - Changing a passphrase rewrites only the repository's configuration, regardless of the size of the repository.
    It does not affect running backups.
  - Anyone who had both the old passphrase and a copy of C(repository.json) can still read the objects they can reach.
    If this matters, create a new repository and copy the restore points to it.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._repository
  - kvm.cbt._log
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
      - V(present) ensures that the repository exists and has the requested key slots.
    type: str
    choices: [present]
    default: present
  new_passphrase:
    description:
      - Passphrase for O(slot). If it does not open the slot, the slot is added or its passphrase is changed.
      - O(passphrase) may be the previous passphrase or any other that opens the repository. It may be omitted once
        O(new_passphrase) opens the repository.
      - Only one of O(new_passphrase), O(new_passphrase_file) and O(new_passphrase_command) can be set.
    type: str
  new_passphrase_file:
    description:
      - Absolute path of a file on the host of the task that contains the new passphrase. See O(passphrase_file) for its
        owner and mode.
    type: path
  new_passphrase_command:
    description:
      - Command that prints the new passphrase on the host of the task. See O(passphrase_command).
    type: str
  slot:
    description:
      - Name of the key slot for O(new_passphrase). The passphrase of a new repository goes into it as well.
    type: str
    default: default
  remove_slots:
    description:
      - Names of key slots to remove. At least one slot that a passphrase given here opens must remain.
    type: list
    elements: str
    default: []
  rebuild:
    description:
      - Whether to recreate C(repository.json) from the manifests of the restore points if it is missing or damaged.
        The manifests contain the id of their repository. If C(repository.json) is valid, nothing is done.
        Other lost objects do not require this.
      - The C(repository.json) of an encrypted repository cannot be recreated, because it holds the only copies of the
        key. Keep a copy of it elsewhere. The copy is useless without a passphrase.
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

- name: Add a second passphrase for emergencies, and remove the one of a former colleague
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

- name: Recreate the lost configuration of an unencrypted repository
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
      description: Id of the repository. None if it would be created.
      type: str
      sample: 6a23e5f9b1c04f7e8d2a3b4c5d6e7f80
    format:
      description: Version of the repository's format.
      type: int
      sample: 1
    encrypted:
      description: Whether the repository is encrypted.
      type: bool
      sample: true
    slots:
      description: Names of its key slots.
      type: list
      elements: str
      sample: [default, emergency]
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _repository, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.keys import (
    FORMAT,
    Configuration,
    KeyChange,
    KeyRequest,
    apply_keys,
)


def _shown(configuration: Configuration | None, before: Configuration | None = None) -> dict[str, object]:
    """A configuration for the diff, with changed key slots marked."""
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
    module = _runtime.Module(
        argument_spec={
            **_options.REPOSITORY,
            **_options.NEW_PASSPHRASE,
            **_options.LOG,
            "state": {"type": "str", "choices": ["present"], "default": "present"},
            "slot": {"type": "str", "default": "default"},
            "remove_slots": {"type": "list", "elements": "str", "default": []},
            "rebuild": {"type": "bool", "default": False},
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE, _options.ONE_NEW_PASSPHRASE],
        supports_check_mode=True,
    )
    params = module.params
    with _runtime.reported(module):
        new = _repository.passphrase_of(module, "new_")
        request = KeyRequest(new, params["slot"], tuple(params["remove_slots"]), params["rebuild"])
        change = apply_keys(
            _repository.repository_location(module), request, module.check_mode, _repository.watching(module)
        )
    module.exit_json(**_outcome(change, module.check_mode))


if __name__ == "__main__":
    main()
