#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_checkpoint
short_description: Enable or disable changed block tracking of a KVM domain
version_added: 0.1.0
description:
  - Tracking is a libvirt checkpoint, which is a dirty bitmap of the same name in each tracked disk.
  - M(kvm.cbt.cbt_backup) enables it by itself; this module is for enabling it beforehand, and for disabling it.
  - Checkpoints of other tools and of other repositories are never touched, unless named with O(checkpoint).
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt
  - kvm.cbt._libvirt.disks
  - kvm.cbt._repository
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  domain:
    description:
      - Name or UUID of the domain.
    type: str
    required: true
    aliases: [name, guest]
  state:
    description:
      - V(present) makes sure that a checkpoint of this repository exists whose bitmaps are sound on every disk that can be tracked.
        The domain must be running to create one.
      - V(absent) removes this repository's checkpoints and bitmaps, running or shut off.
        The next backup reads the disks in full.
    type: str
    choices: [present, absent]
    default: present
  checkpoint:
    description:
      - Name of one checkpoint to have or to remove, in place of this repository's own.
    type: str
  create_repository:
    description:
      - Whether to create the repository with O(state=present) if its directory is missing or empty.
    type: bool
    default: true
requirements:
  - qemu-img
seealso:
  - module: kvm.cbt.cbt_checkpoint_info
  - module: kvm.cbt.cbt_backup
"""

EXAMPLES = r"""
- name: Track the changes of web1
  kvm.cbt.cbt_checkpoint:
    domain: web1
    repository: /backup/kvm

- name: Stop tracking web1 for this repository
  kvm.cbt.cbt_checkpoint:
    domain: web1
    repository: /backup/kvm
    state: absent
"""

RETURN = r"""
checkpoint:
  description: Name of the checkpoint that serves, or would serve; none with O(state=absent).
  returned: always
  type: str
  sample: cbt-6a23e5f9-20261122T113005Z-1a2b3c4d
disks:
  description: The domain's disks.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Disk target.
      type: str
      sample: vda
    tracked:
      description: Whether its changes are, or would be, recorded.
      type: bool
      sample: true
    reason:
      description: Why it cannot be tracked, and what to do; none if it can.
      type: str
      sample: vdb is among exclude_disks.
actions:
  description: What was, or would be, done.
  returned: always
  type: list
  elements: str
  sample: ["create checkpoint cbt-6a23e5f9-20261122T113005Z-1a2b3c4d"]
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _module
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.tracking import set_tracking


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **_module.DOMAIN,
            **_module.LIBVIRT,
            **_module.DISKS,
            **_module.REPOSITORY,
            **_module.CREATE_REPOSITORY,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "checkpoint": {"type": "str"},
        },
        supports_check_mode=True,
    )
    _module.require(module, "libvirt", "libvirt_qemu")
    present = module.params["state"] == "present"
    with _module.reported(module), _module.session(module) as session:
        repository = _module.repository_or_none(module) if present else _module.existing_repository(module)
        result = set_tracking(
            session,
            repository,
            module.params["domain"],
            present,
            module.params["checkpoint"],
            _module.selection(module),
            check_only=module.check_mode,
        )
    module.exit_json(
        changed=bool(result.actions),
        checkpoint=result.checkpoint,
        disks=[dataclasses.asdict(disk) for disk in result.disks],
        actions=[action.text for action in result.actions],
        diff={"before": {"checkpoints": list(result.before)}, "after": {"checkpoints": list(result.after)}},
    )


if __name__ == "__main__":
    main()
