#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_restore_point
short_description: Pin, label and remove restore points by id
version_added: 0.1.0
description:
  - Pins or unpins restore points, changes their tags and note, or removes them.
  - All restore points are checked before the first one is changed.
  - A removed restore point goes to the trash, as with M(kvm.cbt.cbt_retention). Until the grace period ends, it can be
    brought back with O(kvm.cbt.cbt_retention#module:undelete). Its space is reclaimed by M(kvm.cbt.cbt_retention).
  - The data of other restore points does not depend on a removed one. If the next incremental backup would have been
    based on it, the disks are read in full.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._attributes.heartbeats
  - kvm.cbt._libvirt.any_domain
  - kvm.cbt._repository
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  restore_points:
    description:
      - Ids of the restore points, as M(kvm.cbt.cbt_backup_info) lists them. If O(domain) is set, only those of this
        domain.
    type: list
    elements: str
    required: true
    aliases: [restore_point]
  state:
    description:
      - V(present) changes the restore points, which must exist. V(absent) removes them.
      - A restore point that is in use, or that is pinned, is not removed. Set O(pinned=false) to remove a pinned one.
    type: str
    choices: [present, absent]
    default: present
  pinned:
    description:
      - Whether M(kvm.cbt.cbt_retention) keeps the restore points regardless of its rules. By default, unchanged.
    type: bool
  tags:
    description:
      - Labels that replace all those of the restore points. By default, unchanged.
    type: dict
  note:
    description:
      - Text of up to 4096 characters. An empty one removes the note. By default, unchanged.
    type: str
seealso:
  - module: kvm.cbt.cbt_backup_info
  - module: kvm.cbt.cbt_retention
"""

EXAMPLES = r"""
- name: Keep a restore point until the change is closed
  kvm.cbt.cbt_restore_point:
    repository: /backup/kvm
    restore_points: [20261122T113005Z-1a2b3c4d]
    pinned: true
    tags:
      change: CHG-1742
    note: Before the upgrade of the database

- name: Remove restore points that contain a leaked secret
  kvm.cbt.cbt_restore_point:
    repository: /backup/kvm
    restore_points: [20261122T113005Z-1a2b3c4d, 20261123T113004Z-99aabbcc]
    pinned: false
    state: absent
"""

RETURN = r"""
restore_points:
  description: The restore points as they are now, or would be. Empty with O(state=absent).
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    domain:
      description: Name of the domain at the time of the backup.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    created:
      description: UTC time of the backup.
      type: str
      sample: "2026-11-22T11:30:05.123456+00:00"
    pinned:
      description: Whether the restore point is protected from removal by retention.
      type: bool
      sample: true
    tags:
      description: Its labels.
      type: dict
      sample: {"change": "CHG-1742"}
    note:
      description: Its note. Empty for none.
      type: str
      sample: Before the upgrade of the database
removed:
  description: Ids of the restore points that were removed, or would be.
  returned: always
  type: list
  elements: str
  sample: []
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _repository, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.upkeep.points import (
    PointRequest,
    RestorePoint,
    change_points,
)


def _shown(point: RestorePoint) -> dict[str, object]:
    return {
        "id": point.id,
        "domain": point.domain,
        "uuid": point.uuid,
        "created": point.created,
        "pinned": point.pinned,
        "tags": dict(point.tags),
        "note": point.note,
    }


def _states(points: list[RestorePoint]) -> dict[str, dict[str, object]]:
    """What can be changed of each point, for the diff."""
    return {
        f"{point.domain} {point.id}": {"pinned": point.pinned, "tags": dict(point.tags), "note": point.note}
        for point in points
    }


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.REPOSITORY,
            **_options.ANY_DOMAIN,
            **_options.LOG,
            "restore_points": {"type": "list", "elements": "str", "required": True, "aliases": ["restore_point"]},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "pinned": {"type": "bool"},
            "tags": {"type": "dict"},
            "note": {"type": "str"},
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    params = module.params
    tags = params["tags"]
    with _runtime.reported(module):
        request = PointRequest(
            ids=tuple(params["restore_points"]),
            domain=params["domain"],
            remove=params["state"] == "absent",
            pinned=params["pinned"],
            tags=None if tags is None else {str(key): str(value) for key, value in tags.items()},
            note=params["note"],
        )
        control = _runtime.interruptible(module)
        result = change_points(_repository.existing_repository(module), request, control, module.check_mode)
    module.exit_json(
        changed=result.before != result.after,
        restore_points=[_shown(point) for point in result.after],
        removed=[point.id for point in result.before] if request.remove else [],
        diff={"before": _states(result.before), "after": _states(result.after)},
    )


if __name__ == "__main__":
    main()
