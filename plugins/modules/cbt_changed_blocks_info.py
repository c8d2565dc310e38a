#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_changed_blocks_info
short_description: List the blocks of a disk that changed since a restore point
version_added: 0.1.0
description:
  - Lists the blocks of a disk that changed between two restore points of one incremental set, or since one of them.
  - For two restore points, only the repository is read.
  - With O(to=now), libvirt and QEMU are queried for the changes, and a few blocks of the disk are read as a check.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt
  - kvm.cbt._libvirt.lock
  - kvm.cbt._repository
  - kvm.cbt._log
attributes:
  check_mode:
    support: partial
    details:
      - With O(to=now), a backup job is started on the domain and ended again, in check mode as well. First, a job that
        a killed backup left on the domain is ended, and a domain that it left started and paused is shut off.
  diff_mode:
    support: N/A
    details:
      - This module changes no disk, domain or repository.
  idempotent:
    support: full
    details:
      - This module changes no disk, domain or repository. It never reports a change.
options:
  from:
    description:
      - Id of the older restore point.
    type: str
    required: true
  to:
    description:
      - Id of the newer restore point, or V(now).
    type: str
    default: now
  disk:
    description:
      - Disk target.
    type: str
    required: true
requirements:
  - libnbd for Python, with O(to=now)
seealso:
  - module: kvm.cbt.cbt_backup_info
"""

EXAMPLES = r"""
- name: List what changed on the system disk of web1 since a restore point
  kvm.cbt.cbt_changed_blocks_info:
    repository: /backup/kvm
    from: 20261122T113005Z-1a2b3c4d
    disk: vda
  register: changes
"""

RETURN = r"""
changed_blocks:
  description: Ranges of the disk that changed.
  returned: always
  type: list
  elements: dict
  contains:
    offset:
      description: Offset of the first byte.
      type: int
      sample: 1048576
    length:
      description: Number of bytes.
      type: int
      sample: 65536
    zero:
      description: Whether the range now reads as zeros.
      type: bool
      sample: false
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor, _options, _repository, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.tracking.changed_blocks import (
    changed_between,
    changed_until_now,
)


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.REPOSITORY,
            **_options.LIBVIRT,
            **_options.LOCK,
            **_options.LOG,
            "from": {"type": "str", "required": True},
            "to": {"type": "str", "default": "now"},
            "disk": {"type": "str", "required": True},
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    older, newer, disk = (module.params[name] for name in ("from", "to", "disk"))
    with _runtime.reported(module):
        repository = _repository.existing_repository(module)
        if newer != "now":
            found = changed_between(repository, disk, older, newer)
        else:
            _runtime.require(module, "libvirt", "libvirt_qemu", "nbd")
            with _hypervisor.session(module) as session:
                found = changed_until_now(session, repository, disk, older)
    module.exit_json(changed=False, changed_blocks=[each._asdict() for each in found])


if __name__ == "__main__":
    main()
