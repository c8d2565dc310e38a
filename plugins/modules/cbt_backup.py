#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_backup
short_description: Back up a running KVM domain with changed block tracking
version_added: 0.1.0
description:
  - Takes a consistent image of a domain's disks and its configuration into a repository.
  - The first backup reads what is allocated; later ones read only what changed since the last restore point,
    as told by a libvirt checkpoint taken in the same instant as the backup.
  - Every restore point is a full image of its own, whatever was read for it.
  - Where the changes of a disk are not known for certain it is read in full, and the reason is returned and kept in the restore point.
  - If the backup fails or is ended by a signal, the job is ended, the guest thawed, the new checkpoint withdrawn and nothing published.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt
  - kvm.cbt._libvirt.disks
  - kvm.cbt._repository
  - kvm.cbt._repository.create
  - kvm.cbt._repository.workers
  - kvm.cbt._repository.storing
attributes:
  check_mode:
    support: full
    details:
      - Returns for each disk how it would be read, why, and how many bytes have changed.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Every run makes a new restore point.
options:
  domain:
    description:
      - Name or UUID of the domain.
    type: str
    required: true
    aliases: [name, guest]
  mode:
    description:
      - V(auto) reads what changed where that is known, and the whole disk otherwise.
      - V(full) reads all that is allocated and begins a new history.
      - V(incremental) reads what changed, and fails if that is not known for a disk that can be tracked.
      - V(differential) reads what changed since the last checkpoint and leaves tracking as it is,
        so that the next backup reads it again.
      - V(copy) reads all that is allocated and leaves tracking as it is.
    type: str
    choices: [auto, full, incremental, differential, copy]
    default: auto
  threshold:
    description:
      - Make no backup while less than this has changed, such as V(64M). Disks that have to be read in full are backed up in any case.
    type: bytes
  audit:
    description:
      - Whether all of each disk is read and held against what tracking tells.
      - Blocks that changed without being marked are returned in RV(disks[].unmarked) and stored, so that the restore point is a sound base.
    type: bool
    default: false
  offline:
    description:
      - What to do with a domain that is shut off.
      - V(read) reads its images and continues the same history. It cannot be started meanwhile.
      - V(start_paused) starts it with its processors halted for the time of the backup, which also reads disks that are no files.
        In check mode it is not started, and how much has changed is not known.
      - V(skip) makes no backup.
    type: str
    choices: [read, start_paused, skip]
    default: read
  abort_foreign_job:
    description:
      - Whether a backup job of another tool on the domain is ended. A job left over by a killed run of this collection always is.
    type: bool
    default: false
  quiesce:
    description:
      - Whether the guest's file systems are frozen through its agent for the instant in which the backup begins.
      - V(auto) does so if the agent answers, V(required) fails if it does not, V(never) does not try.
    type: str
    choices: [auto, required, never]
    default: auto
  freeze_mountpoints:
    description:
      - Mount points in the guest to freeze. All file systems if left out.
    type: list
    elements: str
    default: []
  scan_untracked:
    description:
      - Whether disks that cannot be tracked (RAW, qcow2 v2, read-only) are read in full and compared with the last restore point,
        so that only blocks that differ are stored. Otherwise they are left out.
    type: bool
    default: true
  scratch_dir:
    description:
      - Directory on the hypervisor for the backup's socket and scratch files, which hold what the guest overwrites during the backup.
      - It is made there if O(uri) names another host, by libvirt's storage driver.
      - On this host, a directory is refused if another user can rename files of others in it or in a directory above it, such as one that belongs to
        QEMU's user, because libvirt creates files in it as root. V(/var/tmp) has the sticky bit, which is safe.
    type: path
    default: /var/tmp
  transport:
    description:
      - How the disks of a running domain are read from QEMU.
      - V(unix) needs the task to run on the hypervisor.
      - V(tcp) reads from another host, such as the one that has the repository, with O(uri) naming the hypervisor.
        A domain that is shut off can then be read with O(offline=start_paused) only.
    type: str
    choices: [unix, tcp]
    default: unix
  nbd_address:
    description:
      - Name or address of the hypervisor under which this host reaches it, with O(transport=tcp). QEMU listens there, and its certificate has to name it.
        The host in O(uri) if left out.
    type: str
  nbd_port:
    description:
      - Port on which QEMU listens, with O(transport=tcp). If left out, the first from 10809 to 10872 that is free.
    type: int
  tls:
    description:
      - Whether what is read over TCP is encrypted and both sides show certificates of one CA, as the role P(kvm.cbt.nbd_tls#role) installs them.
      - Without it, whoever reaches the port can read the disks while the backup runs.
    type: bool
    default: true
  tls_certificates:
    description:
      - Folder on the host of the task with C(ca-cert.pem), C(client-cert.pem) and C(client-key.pem).
    type: path
    default: /etc/pki/libnbd
  tags:
    description:
      - Labels kept with the restore point.
    type: dict
    default: {}
  pin:
    description:
      - Whether retention must never remove the restore point.
    type: bool
    default: false
requirements:
  - libnbd for Python (C(python3-libnbd) of the distribution)
  - lz4 for Python, with O(compression=lz4)
  - zstandard for Python, or Python 3.14, with O(compression=zstd)
  - qemu-img
  - libvirt 7.6 or later and QEMU 6.1 or later
seealso:
  - module: kvm.cbt.cbt_restore
  - module: kvm.cbt.cbt_verify
  - module: kvm.cbt.cbt_backup_info
"""

EXAMPLES = r"""
- name: Back up web1, incrementally where possible
  kvm.cbt.cbt_backup:
    domain: web1
    repository: /backup/kvm

- name: Back up web1 to a removable disk, which may be empty
  kvm.cbt.cbt_backup:
    domain: web1
    repository: /media/disk/kvm
    create_repository: true

- name: Take a file-system consistent backup of the system disk only
  kvm.cbt.cbt_backup:
    domain: db1
    repository: /backup/kvm
    include_disks: [vda]
    quiesce: required
    tags:
      change: CHG-1742
    pin: true

- name: Tell what a backup would read
  kvm.cbt.cbt_backup:
    domain: web1
    repository: /backup/kvm
  check_mode: true
  register: estimate

- name: Back up web1 of kvm1 from the host that has the repository
  kvm.cbt.cbt_backup:
    domain: web1
    repository: /backup/kvm
    uri: qemu+ssh://kvm1/system
    transport: tcp
  delegate_to: backup1

- name: Back up web1 into a bucket
  kvm.cbt.cbt_backup:
    repository: s3://backups/kvm
    domain: web1
    s3:
      endpoint_url: https://s3.example.com
      access_key: "{{ vault_s3_access_key }}"
      secret_key: "{{ vault_s3_secret_key }}"
"""

RETURN = r"""
restore_point:
  description: The restore point made.
  returned: when not in check mode and not skipped
  type: dict
  contains:
    id:
      description: Its id, which sorts by time.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    domain:
      description: Name of the domain.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    created:
      description: UTC time at which it was taken, ISO 8601.
      type: str
      sample: "2026-11-22T11:30:05.123456+00:00"
    parent:
      description: Id of the restore point it was compared with, if any.
      type: str
      sample: 20261121T113004Z-99aabbcc
    checkpoint:
      description: Name of the libvirt checkpoint taken in the same instant; none for a copy or where no disk can be tracked.
      type: str
      sample: cbt-6a23e5f9-20261122T113005Z-1a2b3c4d
    consistency:
      description: V(filesystem) if the guest's file systems were frozen, else V(crash).
      type: str
      sample: filesystem
disks:
  description: What was, or would be, done with each disk of the domain.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Disk target.
      type: str
      sample: vda
    mode:
      description: How it is read, one of V(full), V(incremental), V(differential), V(copy), V(scan) and V(skipped).
      type: str
      sample: incremental
    reason:
      description: Why it is read that way, and what to do if that is not wanted.
      type: str
      sample: Changes since restore point 20261121T113004Z-99aabbcc are known from checkpoint cbt-6a23e5f9-20261121T113004Z-99aabbcc.
    virtual_size:
      description: Size of the disk in bytes.
      type: int
      sample: 10737418240
    dirty_bytes:
      description: Bytes that had, or would have, to be looked at.
      type: int
      sample: 67108864
    read_bytes:
      description: Bytes read; the rest of RV(disks[].dirty_bytes) was known to be zero.
      returned: when not in check mode
      type: int
      sample: 66060288
    zero_bytes:
      description: Bytes found to be zero.
      returned: when not in check mode
      type: int
      sample: 1048576
    unchanged_bytes:
      description: Bytes read that equal the parent's and were not stored again.
      returned: when not in check mode
      type: int
      sample: 524288
    deduplicated_bytes:
      description: Bytes that were stored already, elsewhere on the disk, by another domain or at another time, and were not stored again.
      returned: when not in check mode
      type: int
      sample: 262144
    new_bytes:
      description: Bytes stored, before compression.
      returned: when not in check mode
      type: int
      sample: 65536000
    stored_bytes:
      description: Bytes stored, after compression.
      returned: when not in check mode
      type: int
      sample: 31457280
    healed_blocks:
      description:
        - Damaged blocks of earlier restore points whose content was found on the disk and stored again. All restore points that shared them are sound
          in these blocks now.
      returned: when not in check mode
      type: int
      sample: 0
    unmarked:
      description: Ranges that changed without being marked, found by O(audit=true).
      returned: when not in check mode
      type: list
      elements: dict
      contains:
        offset:
          description: First byte of the disk.
          type: int
          sample: 1048576
        length:
          description: Number of bytes.
          type: int
          sample: 65536
skipped:
  description: Why no backup was made.
  returned: when O(threshold) or O(offline=skip) held it back
  type: str
  sample: 3 MiB have changed on web1, which is less than the threshold of 64 MiB.
duration:
  description: Seconds the backup took, without Ansible's start-up.
  returned: when not in check mode
  type: float
  sample: 2.417
warnings:
  description: What a person should know, such as a disk that had to be read in full.
  returned: when there are any
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _module
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.backup import (
    BackupRequest,
    BackupResult,
    backup,
)
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.plan import Wish
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.run import BackupOptions
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.transport import Transport


def _request(module: AnsibleModule) -> BackupRequest:
    params = module.params
    wish = Wish(
        mode=params["mode"],
        selection=_module.selection(module),
        scan_untracked=params["scan_untracked"],
        threshold=params["threshold"],
        audit=params["audit"],
        offline=params["offline"],
    )
    options = BackupOptions(
        compression=params["compression"],
        compression_level=params["compression_level"],
        quiesce=params["quiesce"],
        freeze_mountpoints=tuple(params["freeze_mountpoints"]),
        scratch_dir=params["scratch_dir"],
        workers=_module.check_workers(module),
        rate_limit=params["rate_limit"],
        dedup=params["dedup"],
        tags={str(key): str(value) for key, value in params["tags"].items()},
        pin=params["pin"],
        transport=Transport(
            params["transport"], params["nbd_address"], params["nbd_port"], params["tls"], params["tls_certificates"]
        ),
    )
    return BackupRequest(
        params["domain"], wish, options, params["offline"] == "start_paused", params["abort_foreign_job"]
    )


def _disks(result: BackupResult) -> list[dict[str, object]]:
    disks = []
    for disk in result.disks:
        details: dict[str, object] = {
            key: getattr(disk, key) for key in ("target", "mode", "reason", "virtual_size", "dirty_bytes")
        }
        if disk.statistics is not None:
            details.update(vars(disk.statistics))
            details["healed_blocks"] = disk.healed_blocks
            details["unmarked"] = [{"offset": offset, "length": length} for offset, length in disk.unmarked]
        disks.append(details)
    return disks


def main() -> None:
    """Run the module."""
    module = _module.Module(
        argument_spec={
            **_module.DOMAIN,
            **_module.LIBVIRT,
            **_module.DISKS,
            **_module.REPOSITORY,
            **_module.CREATE_REPOSITORY,
            **_module.WORKERS,
            **_module.STORING,
            "mode": {
                "type": "str",
                "choices": ["auto", "full", "incremental", "differential", "copy"],
                "default": "auto",
            },
            "threshold": {"type": "bytes"},
            "audit": {"type": "bool", "default": False},
            "offline": {"type": "str", "choices": ["read", "start_paused", "skip"], "default": "read"},
            "abort_foreign_job": {"type": "bool", "default": False},
            "quiesce": {"type": "str", "choices": ["auto", "required", "never"], "default": "auto"},
            "freeze_mountpoints": {"type": "list", "elements": "str", "default": []},
            "scan_untracked": {"type": "bool", "default": True},
            "scratch_dir": {"type": "path", "default": "/var/tmp"},
            "transport": {"type": "str", "choices": ["unix", "tcp"], "default": "unix"},
            "nbd_address": {"type": "str"},
            "nbd_port": {"type": "int"},
            "tls": {"type": "bool", "default": True},
            "tls_certificates": {"type": "path", "default": "/etc/pki/libnbd"},
            "tags": {"type": "dict", "default": {}},
            "pin": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    _module.require(module, "libvirt", "libvirt_qemu", "nbd")
    interrupt = _module.interruptible()
    with _module.reported(module), _module.session(module) as session:
        repository = _module.repository_or_none(module)
        result = backup(session, repository, _request(module), interrupt, check_only=module.check_mode)
    for warning in result.warnings:
        module.warn(warning)
    outcome: dict[str, object] = {"changed": result.skipped is None, "disks": _disks(result)}
    if result.skipped is not None:
        outcome["skipped"] = result.skipped
    if result.point is not None:
        outcome.update(restore_point=_module.point_summary(result.point), duration=result.duration)
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
