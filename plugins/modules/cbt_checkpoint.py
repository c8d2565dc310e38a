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
  - A tracked domain has a libvirt checkpoint, with a dirty bitmap of the same name in each tracked disk.
  - M(kvm.cbt.cbt_backup) enables tracking by itself. Use this module to enable it in advance, or to disable it.
  - Checkpoints of other repositories are changed only if they are named with O(checkpoint). Checkpoints of other tools
    are changed only with O(checkpoint) or O(foreign=remove).
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt.domain
  - kvm.cbt._libvirt
  - kvm.cbt._libvirt.lock
  - kvm.cbt._libvirt.disks
  - kvm.cbt._libvirt.other_hosts
  - kvm.cbt._repository
  - kvm.cbt._repository.create
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) ensures that a checkpoint of this repository exists and has valid bitmaps on every disk that can be
        tracked. The domain must be running for a checkpoint to be created.
      - V(absent) removes the checkpoints and bitmaps of this repository. The domain may be running or shut off.
        The next backup reads the disks in full.
      - V(reconciled) makes libvirt's checkpoints, the bitmaps in the images and the repository's restore points agree.
        A checkpoint that libvirt no longer knows, for example after a move to another host, is redefined. Checkpoints
        and bitmaps of this collection that are no longer usable are removed. A domain that a killed backup with
        O(kvm.cbt.cbt_backup#module:offline=start_paused) left paused is shut off, unless its guest has run.
    type: str
    choices: [present, absent, reconciled]
    default: present
  checkpoint:
    description:
      - Name of one checkpoint to create or remove, in place of this repository's own.
    type: str
  foreign:
    description:
      - What O(state=reconciled) does with checkpoints and bitmaps that do not belong to this collection.
        Those of other repositories of this collection are never changed.
    type: str
    choices: [report, remove]
    default: report
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

- name: Reconcile tracking after web1 was moved here from another host
  kvm.cbt.cbt_checkpoint:
    domain: web1
    repository: /backup/kvm
    state: reconciled

- name: Stop tracking web1 for this repository
  kvm.cbt.cbt_checkpoint:
    domain: web1
    repository: /backup/kvm
    state: absent
"""

RETURN = r"""
checkpoint:
  description: Name of the checkpoint that is in use, or would be. None with O(state=absent).
  returned: always
  type: str
  sample: cbt-6a23e5f9-20261122T113005Z-1a2b3c4d
disks:
  description: Disks of the domain.
  returned: with O(state=present) or O(state=absent)
  type: list
  elements: dict
  contains:
    target:
      description: Disk target.
      type: str
      sample: vda
    tracked:
      description: Whether changes of the disk are recorded, or would be.
      type: bool
      sample: true
    reason:
      description: Why the disk cannot be tracked, and what to do. None if it can.
      type: str
      sample: vdb is among exclude_disks.
foreign:
  description: Checkpoints and bitmaps that do not belong to this collection.
  returned: with O(state=reconciled)
  type: list
  elements: str
  sample: [virtnbdbackup.0]
skipped:
  description: Why no bitmap was removed.
  returned: with O(state=reconciled), when O(silent_hosts) held it back
  type: str
  sample: >-
    vda of web1 may be in use on another host: web1 is shut off on kvm2, kvm1 did not report whether it runs there, and
    image locks on vda do not reach other hosts.
actions:
  description: Actions that were performed, or would be.
  returned: always
  type: list
  elements: str
  sample: ["create checkpoint cbt-6a23e5f9-20261122T113005Z-1a2b3c4d"]
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor, _options, _repository, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.tracking.reconcile import reconcile
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.tracking.tracking import (
    TrackingRequest,
    set_tracking,
)


def _tracked(module: AnsibleModule, session: _hypervisor.Session) -> dict[str, object]:
    present = module.params["state"] == "present"
    repository = _repository.repository_or_none(module) if present else _repository.repository_if_any(module)
    name, checkpoint = module.params["domain"], module.params["checkpoint"]
    request = TrackingRequest(name, present, checkpoint, _hypervisor.selection(module), _hypervisor.other_hosts(module))
    result = set_tracking(session, repository, request, check_only=module.check_mode)
    return {
        "changed": bool(result.actions),
        "checkpoint": result.checkpoint,
        "disks": [dataclasses.asdict(disk) for disk in result.disks],
        "actions": [action.text for action in result.actions],
        "diff": {"before": {"checkpoints": list(result.before)}, "after": {"checkpoints": list(result.after)}},
    }


def _reconciled(module: AnsibleModule, session: _hypervisor.Session) -> dict[str, object]:
    remove_foreign = module.params["foreign"] == "remove"
    plan = reconcile(
        session,
        _repository.existing_repository(module),
        module.params["domain"],
        _hypervisor.other_hosts(module),
        remove_foreign,
        check_only=module.check_mode,
    )
    if plan.skipped is not None:
        module.warn(plan.skipped)
    return {
        **({} if plan.skipped is None else {"skipped": plan.skipped}),
        "changed": bool(plan.steps),
        "checkpoint": plan.serving,
        "actions": [step.text for step in plan.steps],
        "foreign": list(plan.foreign),
        "diff": {"before": plan.state(after=False), "after": plan.state(after=True)},
    }


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.DOMAIN,
            **_options.LIBVIRT,
            **_options.LOCK,
            **_options.DISKS,
            **_options.OTHER_HOSTS,
            **_options.REPOSITORY,
            **_options.CREATE_REPOSITORY,
            **_options.LOG,
            "state": {"type": "str", "choices": ["present", "absent", "reconciled"], "default": "present"},
            "foreign": {"type": "str", "choices": ["report", "remove"], "default": "report"},
            "checkpoint": {"type": "str"},
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    _runtime.require(module, "libvirt", "libvirt_qemu")
    with _runtime.reported(module), _hypervisor.session(module) as session:
        result = _reconciled(module, session) if module.params["state"] == "reconciled" else _tracked(module, session)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
