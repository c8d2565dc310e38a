#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_verify
short_description: Verify that restore points can be restored
version_added: 0.1.0
description:
  - Reads restore points as a restore does, and reports everything that differs from what was written, by disk and
    offset.
  - Blocks that are shared by several restore points are read once.
  - Damage that is found twice in a row is recorded in the repository. The next backup stores damaged blocks again if
    the disk still contains their data, which repairs all restore points that share them. The record is removed if the
    data is later found to be intact. In check mode, nothing is recorded.
  - A storage error, such as a bad sector or a timeout, is not damage. All restore points that can be read are still
    verified, and the task then fails.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._attributes.heartbeats
  - kvm.cbt._libvirt.any_domain
  - kvm.cbt._repository
  - kvm.cbt._repository.workers
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
    details:
      - Findings are not recorded.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Verifying is not reported as a change, although findings are recorded in the repository.
options:
  restore_points:
    description:
      - Ids of restore points, V(latest) for the latest one of each domain, or V(all).
    type: list
    elements: str
    default: [latest]
    aliases: [restore_point]
  level:
    description:
      - V(structure) checks manifests, extent maps, configuration files and the directories of all packs.
      - V(data) also reads every block and compares its SHA-256 digest.
    type: str
    choices: [structure, data]
    default: data
  sample:
    description:
      - Approximate percentage of the blocks to read per run with O(level=data). It is rounded down to 1/n, such as a
        half, a third or a fourth.
      - Each run reads a different part, so n runs read everything. For example, V(15) reads a seventh, and seven runs
        read everything.
      - Packs without blocks to read in this run are not examined. The sequence is separate for each value of O(sample),
        and for V(all), V(latest) and ids in O(restore_points).
      - Blocks recorded as damaged are always read.
    type: int
    default: 100
  fail_on_damage:
    description:
      - Whether to fail the task if anything is damaged or missing.
    type: bool
    default: true
requirements:
  - python >= 3.9
  - lz4 or zstandard for Python, with O(level=data), if blocks were compressed with it
seealso:
  - module: kvm.cbt.cbt_backup
  - module: kvm.cbt.cbt_restore
"""

EXAMPLES = r"""
- name: Verify the latest restore point of every domain
  kvm.cbt.cbt_verify:
    repository: /backup/kvm

- name: Check the structure of all restore points of web1, and continue if one is damaged
  kvm.cbt.cbt_verify:
    repository: /backup/kvm
    domain: web1
    restore_points: [all]
    level: structure
    fail_on_damage: false
  register: verified

- name: Read a seventh of everything each night
  kvm.cbt.cbt_verify:
    repository: /backup/kvm
    restore_points: [all]
    sample: 15
"""

RETURN = r"""
restore_points:
  description: Findings for each restore point.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Id of the restore point, or the name of its manifest if that cannot be read.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    domain:
      description: Name of the domain. None if the manifest cannot be read.
      type: str
      sample: web1
    status:
      description: V(ok), V(damaged) if data has changed, or V(incomplete) if data is missing.
      type: str
      sample: ok
    damage:
      description: Parts that cannot be restored.
      type: list
      elements: dict
      contains:
        disk:
          description: Disk target. Empty if the whole restore point is affected.
          type: str
          sample: vda
        offset:
          description: Offset of the first affected byte on the disk.
          type: int
          sample: 1048576
        length:
          description: Number of affected bytes.
          type: int
          sample: 65536
        cause:
          description: Cause of the damage.
          type: str
          sample: "block 17 of pack 00112233445566778899aabbccddeeff: its stored bytes have changed"
    checked_bytes:
      description: Number of bytes verified for this restore point that were not already verified for another one.
      type: int
      sample: 4294967296
duration:
  description: Duration of the verification in seconds, without Ansible's startup time.
  returned: always
  type: float
  sample: 3.5
limited_by:
  description:
    - The kind of work that limited the verification, measured as in RV(kvm.cbt.cbt_restore#module:disks[].busy). None
      if no block was read.
  returned: always
  type: str
  sample: "Reading the repository: busy 64 % of the time."
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _repository, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.verify.verdicts import PointVerdict, limit_of
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.verify.verify import (
    PointSelection,
    VerifyRequest,
    verify,
)


def _request(module: AnsibleModule) -> VerifyRequest:
    params = module.params
    return VerifyRequest(
        domain=params["domain"],
        wanted=PointSelection.parse(params["restore_points"]),
        level=params["level"],
        sample=params["sample"],
        workers=params["workers"],
    )


def _verdict(verdict: PointVerdict) -> dict[str, object]:
    damage = [
        {"disk": each.disk, "offset": each.offset, "length": each.length, "cause": each.cause}
        for each in verdict.damage
    ]
    return {
        "id": verdict.name,
        "domain": verdict.point.domain if verdict.point is not None else None,
        "status": verdict.status,
        "damage": damage,
        "checked_bytes": verdict.checked_bytes,
    }


def _complaint(verdicts: list[PointVerdict]) -> str:
    first = verdicts[0]
    where = f" {first.damage[0].disk} at offset {first.damage[0].offset}:" if first.damage[0].disk else ""
    return (
        f"{len(verdicts)} restore points cannot be restored as they were."
        f" {first.name} is {first.status}:{where} {first.damage[0].cause}."
        " See restore_points for the complete list."
        " The next backup repairs blocks that the disks still contain. Keep other restore points until then."
    )


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.REPOSITORY,
            **_options.ANY_DOMAIN,
            **_options.WORKERS,
            **_options.LOG,
            "restore_points": {
                "type": "list",
                "elements": "str",
                "default": ["latest"],
                "aliases": ["restore_point"],
            },
            "level": {"type": "str", "choices": ["structure", "data"], "default": "data"},
            "sample": {"type": "int", "default": 100},
            "fail_on_damage": {"type": "bool", "default": True},
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    control = _runtime.interruptible(module)
    with _runtime.reported(module):
        request = _request(module)
        repository = _repository.existing_repository(module)
        verdicts, duration = verify(repository, request, control, record=not module.check_mode, warn=module.warn)
        bad = [verdict for verdict in verdicts if verdict.damage]
        outcome = {
            "restore_points": [_verdict(verdict) for verdict in verdicts],
            "duration": duration,
            "limited_by": limit_of(verdicts),
        }
        if bad and module.params["fail_on_damage"]:
            raise _runtime.Failure(_complaint(bad), outcome)
    module.exit_json(changed=False, **outcome)


if __name__ == "__main__":
    main()
