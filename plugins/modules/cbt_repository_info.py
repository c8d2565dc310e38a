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
  - Returns what a repository takes, how it grows, what of it is known to be damaged, and which restore points are in use.
  - Nothing is changed. The repository may be mounted read-only.
  - The objects are listed, and all manifests are read. No map and no pack is read, so the cost does not depend on the size of the disks.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.info_module
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._repository
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

- name: List what keeps restore points
  ansible.builtin.debug:
    msg: "{{ item.domain }} {{ item.restore_point }}: {{ item.purpose }} on {{ item.host }} since {{ item.since }}"
  loop: "{{ kvm.holds }}"
"""

RETURN = r"""
repository:
  description: What the repository is.
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
      description: Whether it is encrypted.
      type: bool
      sample: true
    slots:
      description: Names of its key slots.
      type: list
      elements: str
      sample: [default]
sizes:
  description: What the repository holds and takes.
  returned: always
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
      description: Number of restore points in the trash. M(kvm.cbt.cbt_retention) brings them back until their grace period ends.
      type: int
      sample: 12
    packs:
      description: Number of packs, which hold the blocks of the disks.
      type: int
      sample: 6500
    pack_bytes:
      description: Bytes of all packs.
      type: int
      sample: 429496729600
    condemned_packs:
      description: Number of packs that no restore point needs any more, and that a later run of M(kvm.cbt.cbt_retention) deletes. They are counted
        in RV(sizes.packs) as well.
      type: int
      sample: 31
    condemned_bytes:
      description: Bytes of these packs, counted in RV(sizes.pack_bytes) as well.
      type: int
      sample: 2046820352
    metadata_bytes:
      description: Bytes of the manifests, maps and files of the restore points. Blocks that only removed points need are part of RV(sizes.pack_bytes).
      type: int
      sample: 104857600
growth:
  description:
    - What restore points added to the repository, by the statistics in their manifests and the time at which they were taken, in UTC.
    - Only restore points that still exist count. What retention reclaimed is not subtracted. Points dated in the future do not count.
    - A block that was stored to heal an older point counts for the run that stored it. What compaction copied does not count.
  returned: always
  type: dict
  contains:
    days:
      description: The days of the last 30 times 24 hours on which a restore point was taken, oldest first.
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
          description: Bytes of the disks that were in no pack yet, before compression.
          type: int
          sample: 2147483648
        stored_bytes:
          description: Bytes that they took in packs.
          type: int
          sample: 912680550
    last_7_days:
      description: The sum of RV(growth.days[].restore_points), RV(growth.days[].new_bytes) and RV(growth.days[].stored_bytes) over the last 7 times 24 hours.
      type: dict
      sample: {"restore_points": 84, "new_bytes": 15032385536, "stored_bytes": 6388763850}
    last_30_days:
      description: The same over the last 30 times 24 hours.
      type: dict
      sample: {"restore_points": 340, "new_bytes": 64424509440, "stored_bytes": 27380416512}
damage:
  description:
    - What is recorded as damaged and not healed, and the manifests that cannot be read. M(kvm.cbt.cbt_verify) finds and records damage, a backup heals it.
    - M(kvm.cbt.cbt_backup_info) returns which restore points are damaged by it.
  returned: always
  type: list
  elements: dict
  contains:
    object:
      description: Name of the pack or the manifest, or the folder of a restore point of which a map or a file is damaged.
      type: str
      sample: packs/3f/3f8a0c5f7be14f6d9a1c2b3d4e5f6071
    blocks:
      description: Number of damaged blocks of a pack. None if all of the object counts as damaged.
      type: int
      sample: 3
    cause:
      description: What was found.
      type: str
      sample: block 17 has another checksum
holds:
  description:
    - What keeps restore points, the oldest first. Each is ended by the module that made it, on any host. Until then M(kvm.cbt.cbt_retention) keeps the point.
    - If what held a point is gone for good, as after the loss of a host, delete the object C(holds/UUID/RESTORE_POINT/ID) from the repository.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Id of the hold.
      type: str
      sample: 0f1e2d3c4b5a6978
    restore_point:
      description: Id of the restore point that it keeps.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    domain:
      description: Name the domain had. None if the hold cannot be read.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    host:
      description: Host name of the machine that holds it. None if the hold cannot be read.
      type: str
      sample: kvm1
    purpose:
      description: What it is held for. None if the hold cannot be read.
      type: str
      sample: export
    since:
      description: UTC time at which it began, by the store's clock. None if the hold cannot be read, or if the run that was about to take it has not ended
        or was killed.
      type: str
      sample: "2026-11-22T11:30:05+00:00"
    damaged:
      description: Why the hold cannot be read, and what to do. It keeps its restore point all the same. None if it can be read.
      type: str
      sample: >-
        holds/2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e/20261122T113005Z-1a2b3c4d/0f1e2d3c4b5a6978 is damaged: its checksum does not match. Delete
        holds/2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e/20261122T113005Z-1a2b3c4d/0f1e2d3c4b5a6978 from the repository if nothing uses the restore point any more.
sessions:
  description: Who is at work on the repository, the longest first, or was when it was killed.
  returned: always
  type: list
  elements: dict
  contains:
    host:
      description: Host name of the machine it runs on.
      type: str
      sample: kvm1
    process:
      description: Id of its process there.
      type: int
      sample: 4711
    operation:
      description: What it does, such as V(backup) or V(retention).
      type: str
      sample: backup
    since:
      description: UTC time at which it began, by the store's clock.
      type: str
      sample: "2026-11-22T11:30:05+00:00"
    lapsed:
      description: Whether nothing was heard of it for half an hour. It then counts as dead, and goes with a later M(kvm.cbt.cbt_retention).
      type: bool
      sample: false
"""

import dataclasses
import datetime

from ansible_collections.kvm.cbt.plugins.module_utils import _module
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.repository_status import (
    Growth,
    RepositoryStatus,
    status,
)
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.repository.sharing.holds import Hold


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
        "damaged": hold.flaw,
    }


def _result(found: RepositoryStatus) -> dict[str, object]:
    return {
        "repository": {
            "id": found.id,
            "format": found.format,
            "encrypted": found.encrypted,
            "slots": list(found.slots),
        },
        "sizes": dataclasses.asdict(found.sizes),
        "growth": _growth(found.growth),
        "damage": [each._asdict() for each in found.damage],
        "holds": [_hold(each) for each in found.holds],
        "sessions": [_module.session_details(each) for each in found.sessions],
    }


def main() -> None:
    """Run the module."""
    module = _module.Module(argument_spec=_module.REPOSITORY, supports_check_mode=True)
    with _module.reported(module):
        found = status(_module.existing_repository(module), datetime.datetime.now(datetime.timezone.utc))
    for warning in found.foreign:
        module.warn(warning)
    module.exit_json(changed=False, **_result(found))


if __name__ == "__main__":
    main()
