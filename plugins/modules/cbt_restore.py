#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_restore
short_description: Restore disks of a KVM domain from a restore point
version_added: 0.1.0
description:
  - Writes disks of a restore point to new images. Every block is proven by its SHA-256 before it is written.
  - An image appears under its name only when all disks asked for are complete and on disk.
    If a block is damaged, or the restore fails or is ended by a signal, none of them is left.
  - Needs neither the domain nor the hypervisor the backup was taken on.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt
  - kvm.cbt._libvirt.disks
  - kvm.cbt._repository
  - kvm.cbt._repository.workers
attributes:
  check_mode:
    support: full
    details:
      - Makes all checks and returns which images would be written.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - An image that exists is never taken for a restored one; the second run fails unless O(force=true).
options:
  domain:
    description:
      - Name or UUID of the domain in the repository. The UUID is needed if several machines had the same name.
    type: str
    required: true
    aliases: [name, guest]
  restore_point:
    description:
      - Id of the restore point, or V(latest).
    type: str
    default: latest
  until:
    description:
      - Restore the latest point not after this time, such as V(2026-11-22 14:30) or V(2026-11-22T14:30:00+01:00).
      - Without a time zone it is UTC; a date alone takes in the whole day.
    type: str
  dest:
    description:
      - Folder for the images, called C(DOMAIN-TARGET.FORMAT). It must exist.
    type: path
  disk_map:
    description:
      - Absolute paths for images by disk target. Without O(dest), only these disks are restored.
    type: dict
    default: {}
  format:
    description:
      - Format of the images. Both are sparse.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  force:
    description:
      - Whether an existing file is replaced once the restored image is complete. The disk of a running domain never is.
    type: bool
    default: false
requirements:
  - lz4 or zstandard for Python, if blocks were compressed with it
  - qemu-img
seealso:
  - module: kvm.cbt.cbt_backup_info
  - module: kvm.cbt.cbt_verify
"""

EXAMPLES = r"""
- name: Restore the latest state of all disks of web1
  kvm.cbt.cbt_restore:
    domain: web1
    repository: /backup/kvm
    dest: /var/lib/libvirt/images/restored

- name: Restore one disk as it was on a certain day
  kvm.cbt.cbt_restore:
    domain: db1
    repository: /backup/kvm
    until: "2026-11-20"
    disk_map:
      vdb: /var/lib/libvirt/images/db1-data-20261120.qcow2
"""

RETURN = r"""
restore_point:
  description: The restore point chosen, as M(kvm.cbt.cbt_backup) returns it.
  returned: always
  type: dict
  sample: {"id": "20261122T113005Z-1a2b3c4d", "domain": "web1"}
disks:
  description: The disks restored, or to be restored.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Disk target.
      type: str
      sample: vda
    path:
      description: Path of the image.
      type: str
      sample: /var/lib/libvirt/images/restored/web1-vda.qcow2
    format:
      description: Format of the image.
      type: str
      sample: qcow2
    virtual_size:
      description: Size of the disk in bytes.
      type: int
      sample: 10737418240
    written_bytes:
      description: Bytes written; the rest is zero. None in check mode.
      type: int
      sample: 4294967296
domain_xml:
  description: The domain's configuration as it was, without secrets.
  returned: always
  type: str
  sample: <domain type='kvm'>...</domain>
domain:
  description: Name the domain had.
  returned: always
  type: str
  sample: web1
duration:
  description: Seconds the restore took, without Ansible's start-up.
  returned: when not in check mode
  type: float
  sample: 8.125
"""

import contextlib

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _module
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.errors import HypervisorError
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.restore import RestoreRequest, restore


def _request(module: AnsibleModule) -> RestoreRequest:
    params = module.params
    return RestoreRequest(
        domain=params["domain"],
        restore_point=params["restore_point"],
        until=params["until"],
        dest=params["dest"],
        disk_map={str(target): str(path) for target, path in params["disk_map"].items()},
        format=params["format"],
        selection=_module.selection(module),
        force=params["force"],
        workers=_module.check_workers(module),
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **_module.DOMAIN,
            **_module.LIBVIRT,
            **_module.DISKS,
            **_module.REPOSITORY,
            **_module.WORKERS,
            "restore_point": {"type": "str", "default": "latest"},
            "until": {"type": "str"},
            "dest": {"type": "path"},
            "disk_map": {"type": "dict", "default": {}},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if module.params["dest"] is None and not module.params["disk_map"]:
        module.fail_json(msg="Nothing says where to restore to. Set dest to a folder, or disk_map to a path for each disk.")
    interrupt = _module.interruptible()
    with _module.reported(module), contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(_module.session_if_installed(module))
        except HypervisorError as error:
            # A restore must work where no libvirt runs; QEMU's own image locks still guard disks in use.
            module.debug(str(error))
            session = None
        result = restore(_module.existing_repository(module), _request(module), session, interrupt, check_only=module.check_mode)
    disks = [
        {"target": disk.target, "path": disk.path, "format": disk.format, "virtual_size": disk.size, "written_bytes": disk.written_bytes}
        for disk in result.disks
    ]
    outcome: dict[str, object] = {} if module.check_mode else {"duration": result.duration}
    module.exit_json(
        changed=True,
        restore_point=_module.point_summary(result.point),
        disks=disks,
        domain_xml=_module.without_secrets(result.domain_xml),
        domain=result.point.domain,
        **outcome,
    )


if __name__ == "__main__":
    main()
