#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_repository_info
short_description: Show sizes, growth, damage and holds of a repository
version_added: 0.1.0
description:
  - Returns the size of a repository, its growth, its known damage, and the restore points in use.
  - Nothing is changed. The repository may be mounted read-only.
  - The module lists all objects and reads all manifests. It reads no maps and no packs, so its cost does not depend on
    the size of the disks. With O(details=false), it only opens the repository.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.info_module
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._repository
  - kvm.cbt._log
options:
  details:
    description:
      - Whether to return more than RV(repository).
    type: bool
    default: true
seealso:
  - module: kvm.cbt.cbt_repository
  - module: kvm.cbt.cbt_backup_info
  - module: kvm.cbt.cbt_retention
  - module: kvm.cbt.cbt_verify
"""

EXAMPLES = r"""
- name: Get the state of the repository
  kvm.cbt.cbt_repository_info:
    repository: /backup/kvm
  register: kvm

- name: Show how many bytes were stored in the last week
  ansible.builtin.debug:
    msg: "{{ kvm.growth.last_7_days.stored_bytes | ansible.builtin.human_readable }}"

- name: Fail if anything is damaged
  ansible.builtin.assert:
    that: kvm.damage | length == 0

- name: Check that all hosts reach the same repository
  kvm.cbt.cbt_repository_info:
    repository: /backup/kvm
    details: false
  register: opened
  failed_when: opened is failed or opened.repository.id != "6a23e5f9b1c04f7e8d2a3b4c5d6e7f80"

- name: List the holds on restore points
  ansible.builtin.debug:
    msg: "{{ item.domain }} {{ item.restore_point }}: {{ item.purpose }} on {{ item.host }} since {{ item.since }}"
  loop: "{{ kvm.holds }}"
"""

RETURN = r"""
repository:
  description: Facts about the repository.
  returned: always
  type: dict
  contains:
    id:
      description: Its id.
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
      sample: [default]
sizes:
  description: Contents and sizes of the repository.
  returned: with O(details)
  type: dict
  contains:
    domains:
      description: Number of domains that have restore points, counted by UUID.
      type: int
      sample: 12
    restore_points:
      description: Number of restore points whose manifests can be read.
      type: int
      sample: 340
    removed_points:
      description:
        - Number of restore points in the trash. M(kvm.cbt.cbt_retention) can bring them back until their grace period
          ends.
      type: int
      sample: 12
    packs:
      description: Number of packs, which hold the blocks of the disks.
      type: int
      sample: 6500
    pack_bytes:
      description: Total size of all packs in bytes.
      type: int
      sample: 429496729600
    condemned_packs:
      description:
        - Number of packs that no restore point uses any longer. A later run of M(kvm.cbt.cbt_retention) deletes them.
          They are included in RV(sizes.packs).
      type: int
      sample: 31
    condemned_bytes:
      description: Total size of these packs in bytes. It is included in RV(sizes.pack_bytes).
      type: int
      sample: 2046820352
    metadata_bytes:
      description:
        - Total size of the manifests, maps and files of the restore points in bytes. Blocks that only removed restore
          points use are included in RV(sizes.pack_bytes).
      type: int
      sample: 104857600
growth:
  description:
    - What restore points added to the repository, according to the statistics in their manifests and the UTC time at
      which they were created.
    - Only restore points that still exist are counted. Space reclaimed by retention is not subtracted. Restore points
      dated in the future are not counted.
    - A block that was stored to repair an older restore point counts for the run that stored it. Blocks copied by
      compaction are not counted.
  returned: with O(details)
  type: dict
  contains:
    days:
      description: Days within the last 30 times 24 hours on which a restore point was created, oldest first.
      type: list
      elements: dict
      contains:
        date:
          description: The day.
          type: str
          sample: "2026-11-22"
        restore_points:
          description: Number of restore points.
          type: int
          sample: 12
        new_bytes:
          description: Bytes of the disks that were not in any pack yet, before compression.
          type: int
          sample: 2147483648
        stored_bytes:
          description: Bytes added to packs.
          type: int
          sample: 912680550
    last_7_days:
      description:
        - Sum of RV(growth.days[].restore_points), RV(growth.days[].new_bytes) and RV(growth.days[].stored_bytes) over
          the last 7 times 24 hours.
      type: dict
      sample: {"restore_points": 84, "new_bytes": 15032385536, "stored_bytes": 6388763850}
    last_30_days:
      description: The same sum over the last 30 times 24 hours.
      type: dict
      sample: {"restore_points": 340, "new_bytes": 64424509440, "stored_bytes": 27380416512}
damage:
  description:
    - Objects that are recorded as damaged and not repaired, and manifests that cannot be read.
      M(kvm.cbt.cbt_verify) finds and records damage. A backup repairs it.
    - M(kvm.cbt.cbt_backup_info) returns which restore points are affected.
  returned: with O(details)
  type: list
  elements: dict
  contains:
    object:
      description: Name of the pack or manifest, or the folder of a restore point with a damaged map or file.
      type: str
      sample: packs/3f/3f8a0c5f7be14f6d9a1c2b3d4e5f6071
    blocks:
      description: Number of damaged blocks of a pack. None if the whole object counts as damaged.
      type: int
      sample: 3
    cause:
      description: Kind of damage.
      type: str
      sample: block 17 has another checksum
holds:
  description:
    - Holds on restore points, oldest first. A hold is released by the module that took it, from any host. Until then,
      M(kvm.cbt.cbt_retention) keeps the restore point.
    - If the holder is permanently gone, for example because its host was lost, delete the object
      C(holds/UUID/RESTORE_POINT/ID) from the repository.
  returned: with O(details)
  type: list
  elements: dict
  contains:
    id:
      description: Id of the hold.
      type: str
      sample: 0f1e2d3c4b5a6978
    restore_point:
      description: Id of the held restore point.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    domain:
      description: Name of the domain at the time of the backup. None if the hold cannot be read.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    host:
      description: Hostname of the machine that took the hold. None if the hold cannot be read.
      type: str
      sample: kvm1
    purpose:
      description: Purpose of the hold. None if the hold cannot be read.
      type: str
      sample: export
    since:
      description:
        - UTC time at which the hold was taken, by the storage's clock. None if the hold cannot be read, or if the run
          that is taking it has not finished or was killed.
      type: str
      sample: "2026-11-22T11:30:05+00:00"
    damaged:
      description:
        - Why the hold cannot be read, and what to do. The hold still keeps its restore point. None if it can be read.
      type: str
      sample: >-
        holds/2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e/20261122T113005Z-1a2b3c4d/0f1e2d3c4b5a6978 is damaged: its checksum
        does not match. Delete
        holds/2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e/20261122T113005Z-1a2b3c4d/0f1e2d3c4b5a6978 from the repository if
        nothing uses the restore point any more.
sessions:
  description: Runs that are using the repository, or were when they were killed. The longest-running one is first.
  returned: with O(details)
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
"""

import dataclasses
import datetime

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _repository, _results, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.repository_status import (
    Growth,
    Hold,
    Identity,
    RepositoryStatus,
    identity,
    status,
)


def _growth(growth: Growth) -> dict[str, object]:
    return {
        "days": [{"date": day, **dataclasses.asdict(each)} for day, each in growth.days.items()],
        "last_7_days": dataclasses.asdict(growth.last_7_days),
        "last_30_days": dataclasses.asdict(growth.last_30_days),
    }


def _hold(hold: Hold) -> dict[str, object]:
    uuid, point_id = hold.key
    return {
        "id": hold.id,
        "restore_point": point_id,
        "domain": hold.point.domain if hold.point is not None else None,
        "uuid": uuid,
        "host": hold.host or None,
        "purpose": hold.purpose or None,
        "since": hold.begun,
        "damaged": hold.why_unreadable,
    }


def _identity(found: Identity) -> dict[str, object]:
    return {
        "id": found.id,
        "format": found.format,
        "encrypted": found.encrypted,
        "slots": list(found.slots),
    }


def _result(found: RepositoryStatus) -> dict[str, object]:
    return {
        "sizes": dataclasses.asdict(found.sizes),
        "growth": _growth(found.growth),
        "damage": [each._asdict() for each in found.damage],
        "holds": [_hold(each) for each in found.holds],
        "sessions": [_results.session_details(each) for each in found.sessions],
    }


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={**_options.REPOSITORY, **_options.LOG, "details": {"type": "bool", "default": True}},
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    with _runtime.reported(module):
        repository = _repository.existing_repository(module)
        result: dict[str, object] = {"repository": _identity(identity(repository))}
        if module.params["details"]:
            found = status(repository, datetime.datetime.now(datetime.timezone.utc))
            result.update(_result(found))
            for warning in found.foreign:
                module.warn(warning)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
