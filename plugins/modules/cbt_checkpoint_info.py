#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_checkpoint_info
short_description: Show which disks of KVM domains are tracked, and by which checkpoints
version_added: 0.1.0
description:
  - Lists domains with their disks, dirty bitmaps and checkpoints without changing anything.
  - For every disk that cannot be tracked, the reason and a remedy are returned.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.info_module
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt.any_domain
  - kvm.cbt._libvirt
  - kvm.cbt._repository
  - kvm.cbt._log
options:
  repository:
    description:
      - Repository whose checkpoints are reported as ours. By default, those of every repository of this collection are.
    type: path
    required: false
  query:
    description:
      - JMESPath expression that is applied to the result on the host. Requires the Python module C(jmespath) there.
      - The outcome is returned as RV(result), in place of all other return values.
    type: str
seealso:
  - module: kvm.cbt.cbt_checkpoint
"""

EXAMPLES = r"""
- name: List the tracking state of all domains
  kvm.cbt.cbt_checkpoint_info:
  register: tracking

- name: List disks that cannot be tracked
  ansible.builtin.debug:
    msg: "{{ disks | selectattr('reason') | map(attribute='reason') | list }}"
  vars:
    disks: "{{ tracking.domains | map(attribute='disks') | flatten }}"
"""

RETURN = r"""
domains:
  description: The domains.
  returned: without O(query)
  type: list
  elements: dict
  contains:
    name:
      description: Name.
      type: str
      sample: web1
    uuid:
      description: UUID.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    state:
      description: State as reported by libvirt.
      type: str
      sample: running
    job:
      description: >-
        V(backup), V(incoming) (a migration to this host), V(shutdown) (its guest has powered off and QEMU is ending) or
        V(other) if a job is running on the domain.
      type: str
      sample: backup
    disks:
      description: Disks of the domain.
      type: list
      elements: dict
      contains:
        target:
          description: Disk target.
          type: str
          sample: vda
        source:
          description: Path or name of the image.
          type: str
          sample: /var/lib/libvirt/images/web1.qcow2
        type:
          description: Kind of source, such as V(file), V(block) or V(network).
          type: str
          sample: file
        device:
          description: V(disk), V(cdrom), V(floppy) or V(lun).
          type: str
          sample: disk
        format:
          description: Format of the image.
          type: str
          sample: qcow2
        compat:
          description: Version of a qcow2 image. Bitmaps require V(1.1).
          type: str
          sample: "1.1"
        virtual_size:
          description: Size in bytes.
          type: int
          sample: 10737418240
        tracked:
          description: Whether the disk has a dirty bitmap.
          type: bool
          sample: true
        reason:
          description: Why the disk cannot be tracked, and what to do. None if it can.
          type: str
          sample: vdb is a cdrom.
        bitmaps:
          description:
            - Bitmaps of the disk, with C(name), C(granularity) and C(dirty_bytes) in bytes,
              and whether each is C(inconsistent).
          type: list
          elements: dict
          sample:
            - name: cbt-6a23e5f9-20261122T113005Z-1a2b3c4d
              granularity: 65536
              dirty_bytes: 1048576
              inconsistent: false
    checkpoints:
      description: Checkpoints known to libvirt, oldest first.
      type: list
      elements: dict
      contains:
        name:
          description: Name.
          type: str
          sample: cbt-6a23e5f9-20261122T113005Z-1a2b3c4d
        parent:
          description: Name of the previous checkpoint.
          type: str
        created:
          description: Creation time in seconds since 1970-01-01 UTC.
          type: int
          sample: 1795347005
        ours:
          description:
            - Whether the checkpoint belongs to O(repository), or by default to any repository of this collection.
          type: bool
          sample: true
        valid:
          description: Whether all of its bitmaps exist and are usable.
          type: bool
          sample: true
        dirty_bytes:
          description: Number of bytes changed since the checkpoint. None while the domain is shut off.
          type: int
          sample: 1048576
result:
  description: Outcome of O(query).
  returned: with O(query)
  type: raw
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor, _options, _repository, _results, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.domains import CheckpointFacts, describe_domains


def _checkpoint(facts: CheckpointFacts) -> dict[str, object]:
    known = facts.checkpoint
    named = {"name": known.name, "parent": known.parent, "created": known.created}
    return {**named, "ours": facts.ours, "valid": facts.valid, "dirty_bytes": facts.dirty_bytes}


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.ANY_DOMAIN,
            **_options.LIBVIRT,
            **_options.QUERY,
            **_options.LOG,
            **_options.ANY_REPOSITORY,
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    _runtime.require(module, "libvirt", "libvirt_qemu")
    with _runtime.reported(module), _hypervisor.session(module) as session:
        repository_id = _repository.existing_repository(module).id if module.params["repository"] is not None else None
        described = describe_domains(session, module.params["domain"], repository_id)
    domains = [
        {
            "name": facts.name,
            "uuid": facts.uuid,
            "state": facts.state,
            "job": facts.job,
            "disks": [_results.disk_details(disk) for disk in facts.disks],
            "checkpoints": [_checkpoint(each) for each in known],
        }
        for facts, known in described
    ]
    result: dict[str, object] = {"domains": domains}
    if module.params["query"] is not None:
        result = {"result": _results.reduced(module, result)}
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
