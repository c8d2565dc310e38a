#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_export_info
short_description: List the NBD exports of restore points on a host
version_added: 0.1.0
description:
  - Lists the exports that M(kvm.cbt.cbt_export) serves on this host for the user that runs the task, also those whose
    server is gone.
  - No repository is read. M(kvm.cbt.cbt_repository_info) lists the holds of the exports of all hosts.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.info_module
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._log
options:
  name:
    description:
      - Name of an export. By default, all are listed.
    type: str
seealso:
  - module: kvm.cbt.cbt_export
"""

EXAMPLES = r"""
- name: List the exports of this host
  kvm.cbt.cbt_export_info:
  register: exported

- name: Fail if the server of an export is gone
  ansible.builtin.assert:
    that: exported.exported | rejectattr('running') | length == 0
"""

RETURN = r"""
exported:
  description: The exports, in the order of their names.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the export.
      type: str
      sample: web1-20261122T113005Z-1a2b3c4d
    domain:
      description: Name of the domain at the time of the backup.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    restore_point:
      description: Id of the restore point.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    repository:
      description: Location of the repository.
      type: str
      sample: /backup/kvm
    writable:
      description: Whether clients can write. Their writes are private to the export.
      type: bool
      sample: false
    hold:
      description: Id of the hold that keeps the restore point. Null without one.
      type: str
      sample: 1f6c0a9d3e5b7c21
    running:
      description: Whether the server runs.
      type: bool
      sample: true
    exports:
      description: The disks.
      type: list
      elements: dict
      contains:
        target:
          description: Disk target, and name of the NBD export.
          type: str
          sample: vda
        uri:
          description: NBD URI of the disk.
          type: str
          sample: nbd+unix:///vda?socket=/run/kvm-cbt-exports/web1-20261122T113005Z-1a2b3c4d.sock
        size:
          description: Size of the disk in bytes.
          type: int
          sample: 10737418240
        pid:
          description: Process id of the server. Null if it does not run.
          type: int
          sample: 4711
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _results, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.export.export import listed


def main() -> None:
    """Run the module."""
    module = _runtime.Module(argument_spec={**_options.LOG, "name": {"type": "str"}}, supports_check_mode=True)
    name = module.params["name"]
    with _runtime.reported(module):
        found = [each for each in listed() if name in (None, each.plan.name)]
    module.exit_json(changed=False, exported=[_results.export_details(each) for each in found])


if __name__ == "__main__":
    main()
