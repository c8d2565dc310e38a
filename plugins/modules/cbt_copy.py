#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_copy
short_description: Copy restore points to another repository
version_added: 0.1.0
description:
  - Copies restore points from O(repository) to O(dest_repository). Either can be a directory or an object store,
    encrypted or not.
  - Only restore points that are missing in the destination, or have lost an object there, are copied. Of these, only
    missing blocks are copied. Every block is verified before it is copied.
  - Restore points keep their ids, times, tags and pins. Each becomes visible in the destination only once it is
    complete.
  - After an interruption or an error, the next run continues with the first missing restore point. It reads that one
    from the beginning. Blocks that are already stored are found and not stored again, unless O(dedup=none) is set or
    retention in the destination has condemned them in the meantime.
  - Blocks recorded as damaged in O(dest_repository) are copied again with the next restore point. This repairs all
    restore points there that share them.
  - A damaged restore point is not copied. All others are copied, and the task then fails.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._attributes.heartbeats
  - kvm.cbt._libvirt.any_domain
  - kvm.cbt._repository
  - kvm.cbt._repository.create
  - kvm.cbt._repository.workers
  - kvm.cbt._repository.storing
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  restore_points:
    description:
      - Ids of restore points, V(latest) for the latest one of each domain, or V(all).
    type: list
    elements: str
    default: [all]
    aliases: [restore_point]
  dest_repository:
    description:
      - Destination, an absolute path or C(s3://bucket/prefix).
    type: path
    required: true
  dest_s3:
    description:
      - Connection to the object store of O(dest_repository), with the same options as O(s3).
    type: dict
    suboptions:
      endpoint_url:
        description:
          - As in O(s3).
        type: str
      region:
        description:
          - As in O(s3).
        type: str
      profile:
        description:
          - As in O(s3).
        type: str
      access_key:
        description:
          - As in O(s3).
        type: str
      secret_key:
        description:
          - As in O(s3).
        type: str
      validate_certs:
        description:
          - As in O(s3).
        type: bool
        default: true
      ca_bundle:
        description:
          - As in O(s3).
        type: path
      addressing_style:
        description:
          - As in O(s3).
        type: str
        choices: [auto, path, virtual]
      server_side_encryption:
        description:
          - As in O(s3).
        type: str
        choices: [AES256, aws:kms, aws:kms:dsse]
      kms_key_id:
        description:
          - As in O(s3).
        type: str
  dest_passphrase:
    description:
      - Passphrase of O(dest_repository). Required if it is encrypted. If the run creates the repository, it is
        encrypted with this passphrase.
      - It is never logged, returned or taken from the environment.
      - Only one of O(dest_passphrase), O(dest_passphrase_file) and O(dest_passphrase_command) can be set.
    type: str
  dest_passphrase_file:
    description:
      - Absolute path of a file on the host of the task that contains the passphrase of O(dest_repository). See
        O(passphrase_file) for its owner and mode.
    type: path
  dest_passphrase_command:
    description:
      - Command that prints the passphrase of O(dest_repository) on the host of the task. See O(passphrase_command).
    type: str
  dest_accept_repository:
    description:
      - Whether to accept O(dest_repository) if its state differs from the one this host knows, as O(accept_repository)
        does for O(repository).
    type: bool
    default: false
requirements:
  - python >= 3.9
  - lz4 or zstandard for Python, if blocks are compressed with that codec
seealso:
  - module: kvm.cbt.cbt_backup
  - module: kvm.cbt.cbt_backup_info
"""

EXAMPLES = r"""
- name: Copy all new restore points to another site, encrypted
  kvm.cbt.cbt_copy:
    repository: /backup/kvm
    dest_repository: s3://offsite/kvm
    dest_s3:
      endpoint_url: https://s3.example.com
      profile: backup
    dest_passphrase: "{{ vault_offsite_passphrase }}"
    rate_limit: 50M
    create_repository: true

- name: Copy the latest restore point of web1 to a removable disk
  kvm.cbt.cbt_copy:
    domain: web1
    restore_points: [latest]
    repository: /backup/kvm
    dest_repository: /media/disk/kvm
    create_repository: true
"""

RETURN = r"""
copied:
  description: Restore points that were copied, or would be in check mode, oldest first.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    domain:
      description: Name of the domain.
      type: str
      sample: web1
    read_bytes:
      description: Number of bytes read from O(repository). Not in check mode.
      type: int
      sample: 67108864
    deduplicated_bytes:
      description: Number of bytes that O(dest_repository) already had. Not in check mode.
      type: int
      sample: 1048576
    new_bytes:
      description: Number of bytes stored in O(dest_repository), before compression. Not in check mode.
      type: int
      sample: 66060288
    stored_bytes:
      description: Number of bytes stored in O(dest_repository), after compression. Not in check mode.
      type: int
      sample: 31457280
present:
  description: Ids of the selected restore points that already exist in O(dest_repository), with all their objects.
  returned: always
  type: list
  elements: str
  sample: [20261121T113004Z-5e6f7081]
failed_points:
  description: Restore points that could not be copied, by id, each with the cause.
  returned: always
  type: dict
  sample: {}
duration:
  description: Duration of the copy in seconds, without Ansible's startup time.
  returned: always
  type: float
  sample: 3.5
limited_by:
  description:
    - The kind of work that limited the copy, measured as in RV(kvm.cbt.cbt_backup#module:disks[].busy). None if no
      block was read.
  returned: always
  type: str
  sample: "Storing in the destination: busy 71 % of the time."
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _repository, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.copy import (
    CopiedPoint,
    CopyRequest,
    PointSelection,
    StoringOptions,
    copy,
)


def _request(module: _runtime.Module) -> CopyRequest:
    params = module.params
    options = StoringOptions(
        _repository.compression(module),
        params["compression_level"],
        params["dedup"],
        params["workers"],
        params["rate_limit"],
    )
    return CopyRequest(params["domain"], PointSelection.parse(params["restore_points"]), options)


def _details(copied: CopiedPoint) -> dict[str, object]:
    details: dict[str, object] = {"id": copied.point.id, "domain": copied.point.domain}
    if copied.statistics is not None:
        details.update(
            {
                key: getattr(copied.statistics, key)
                for key in ("read_bytes", "deduplicated_bytes", "new_bytes", "stored_bytes")
            }
        )
    return details


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.REPOSITORY,
            **_options.DEST,
            **_options.CREATE_REPOSITORY,
            **_options.ANY_DOMAIN,
            **_options.WORKERS,
            **_options.STORING,
            **_options.LOG,
            "restore_points": {
                "type": "list",
                "elements": "str",
                "default": ["all"],
                "aliases": ["restore_point"],
            },
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE, _options.ONE_DEST_PASSPHRASE],
        supports_check_mode=True,
    )
    control = _runtime.interruptible(module)
    with _runtime.reported(module):
        request = _request(module)
        source = _repository.existing_repository(module)
        dest = _repository.repository_or_none(module, "dest_")
        result = copy(source, dest, request, control, check_only=module.check_mode)
        for warning in result.warnings:
            module.warn(warning)
        outcome = {
            "changed": bool(result.copied),
            "copied": [_details(each) for each in result.copied],
            "present": [point.id for point in result.present],
            "failed_points": dict(result.failed),
            "duration": result.duration,
            "limited_by": result.limited_by,
        }
        if result.failed:
            name, cause = next(iter(result.failed.items()))
            remedy = "See failed_points, and verify the repository. The next backup repairs what it can."
            raise _runtime.Failure(
                f"{len(result.failed)} restore points were not copied. {name}: {cause} {remedy}", outcome
            )
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
