#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_backup_info
short_description: List the restore points of a repository
version_added: 0.1.0
description:
  - Lists the contents of a repository in machine-readable form without changing anything.
  - Restore points are listed oldest first. A restore point always comes after the one it is based on, even if a clock
    was wrong.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.info_module
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt.any_domain
  - kvm.cbt._repository
  - kvm.cbt._log
options:
  restore_point:
    description:
      - Id of a restore point, or V(latest) for the latest one of each domain. By default, all are listed.
      - The latest one is chosen among those that the other options select.
    type: str
    aliases: [restore_points]
  tags:
    description:
      - List only restore points with at least one of these tags, given as C(name) or C(name=value).
    type: list
    elements: str
    default: []
  since:
    description:
      - List only restore points taken at or after this time, such as V(2026-11-22 14:30) or
        V(2026-11-22T14:30:00+01:00).
      - A time without a time zone is UTC. A date without a time includes the whole day.
    type: str
  until:
    description:
      - List only restore points taken at or before this time, in the form of O(since).
    type: str
  host:
    description:
      - List only restore points that were made on the hypervisor with this hostname.
    type: str
  pinned:
    description:
      - List only restore points that are pinned, or with V(false), only those that are not.
    type: bool
  damaged:
    description:
      - List only restore points of which a part is known to be damaged or missing, or with V(false), only the others.
    type: bool
  query:
    description:
      - JMESPath expression that is applied to the result on the host. Requires the Python module C(jmespath) there.
      - The outcome is returned as RV(result), in place of all other return values.
    type: str
seealso:
  - module: kvm.cbt.cbt_backup
  - module: kvm.cbt.cbt_changed_blocks_info
  - module: kvm.cbt.cbt_restore
  - module: kvm.cbt.cbt_repository_info
"""

EXAMPLES = r"""
- name: List all restore points
  kvm.cbt.cbt_backup_info:
    repository: /backup/kvm
  register: backups

- name: List damaged restore points of the last days
  kvm.cbt.cbt_backup_info:
    repository: /backup/kvm
    since: "2026-11-20"
    damaged: true
  register: damaged

- name: Get the id of the latest restore point of web1
  kvm.cbt.cbt_backup_info:
    repository: /backup/kvm
    domain: web1
    query: restore_points[-1].id
  register: latest
"""

RETURN = r"""
repository:
  description: Facts about the repository.
  returned: without O(query)
  type: dict
  contains:
    id:
      description: Id of the repository. The names of its checkpoints begin with C(cbt-) and the first 8 digits of it.
      type: str
      sample: 6a23e5f9b1c04f7e8d2a3b4c5d6e7f80
    format:
      description: Version of the repository's format.
      type: int
      sample: 1
    encrypted:
      description: Whether the repository is encrypted.
      type: bool
      sample: false
    bytes_stored:
      description: Total size of all packs in bytes.
      type: int
      sample: 4294967296
    packs:
      description: Number of packs.
      type: int
      sample: 65
restore_points:
  description: The restore points, oldest first.
  returned: without O(query)
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
    parent:
      description: Id of the restore point that it was compared with, if any.
      type: str
      sample: 20261121T113004Z-99aabbcc
    checkpoint:
      description: Name of the checkpoint created with it, if any.
      type: str
      sample: cbt-6a23e5f9-20261122T113005Z-1a2b3c4d
    consistency:
      description: V(filesystem) or V(crash).
      type: str
      sample: crash
    disks:
      description:
        - Its disks, with RV(restore_points[].disks[].target), C(virtual_size), C(mode), C(reason)
          and the byte counts of the run, as M(kvm.cbt.cbt_backup) returns them.
      type: list
      elements: dict
      contains:
        target:
          description: Disk target.
          type: str
          sample: vda
    tags:
      description: Labels of the restore point.
      type: dict
      sample: {"change": "CHG-1742"}
    note:
      description: Text that M(kvm.cbt.cbt_restore_point) set. Empty for none.
      type: str
      sample: Before the upgrade
    pinned:
      description: Whether the restore point is protected from removal by retention.
      type: bool
      sample: false
    host:
      description: Hostname of the hypervisor on which the backup was made.
      type: str
      sample: kvm1
    verified:
      description:
        - Last verification by M(kvm.cbt.cbt_verify), with its time (C(at)), its C(level), the C(percent) of blocks
          that were read, and the resulting C(status). None if the restore point was never verified.
      type: dict
      sample: {"at": "2026-11-23T02:00:11+00:00", "level": "data", "percent": 100, "status": "ok"}
    damaged:
      description: Whether part of the restore point is known to be damaged or missing, and is not repaired yet.
      type: bool
      sample: false
sessions:
  description: Runs that are using the repository, or were when they were killed. The longest-running one is first.
  returned: without O(query)
  type: list
  elements: dict
  contains:
    host:
      description: Hostname of the machine on which it runs.
      type: str
      sample: kvm1
    process:
      description: Process id on that machine.
      type: int
      sample: 4711
    operation:
      description: Operation, such as V(backup) or V(retention).
      type: str
      sample: backup
    since:
      description: UTC time at which it started, by the storage's clock.
      type: str
      sample: "2026-11-22T11:30:05+00:00"
    lapsed:
      description:
        - Whether the session has not been renewed for 30 minutes. It then counts as dead, and a later run of
          M(kvm.cbt.cbt_retention) removes it.
      type: bool
      sample: false
damaged:
  description: Manifests that cannot be read, each with the cause.
  returned: without O(query)
  type: dict
  sample: {}
result:
  description: Outcome of O(query).
  returned: with O(query)
  type: raw
  sample: 20261122T113005Z-1a2b3c4d
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _repository, _results, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.info import (
    PointFilter,
    describe_points,
    describe_repository,
    lease_holders,
)


def _conditions(module: AnsibleModule) -> PointFilter:
    given = {key: module.params[key] for key in ("since", "until", "host", "pinned", "damaged")}
    return PointFilter(tags=tuple(module.params["tags"]), **given)


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.REPOSITORY,
            **_options.ANY_DOMAIN,
            **_options.QUERY,
            **_options.LOG,
            "restore_point": {"type": "str", "aliases": ["restore_points"]},
            "tags": {"type": "list", "elements": "str", "default": []},
            "since": {"type": "str"},
            "until": {"type": "str"},
            "host": {"type": "str"},
            "pinned": {"type": "bool"},
            "damaged": {"type": "bool"},
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    with _runtime.reported(module):
        repository = _repository.existing_repository(module)
        facts = describe_repository(repository)
        params = module.params
        found, unreadable = describe_points(repository, params["domain"], params["restore_point"], _conditions(module))
        result: dict[str, object] = {
            "repository": dataclasses.asdict(facts),
            "restore_points": [{**_results.point_details(point), **health._asdict()} for point, health in found],
            "damaged": dict(unreadable),
            "sessions": [_results.session_details(each) for each in lease_holders(repository)],
        }
    if module.params["query"] is not None:
        result = {"result": _results.reduced(module, result)}
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
