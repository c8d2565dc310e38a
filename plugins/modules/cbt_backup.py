#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_backup
short_description: Back up a KVM domain, running or shut off, with changed block tracking
version_added: 0.1.0
description:
  - Backs up the disks and the configuration of a domain to a repository, all as of the same instant.
  - The first backup reads the allocated parts of the disks. Later backups read only what changed since the last
    restore point, as recorded by a libvirt checkpoint that is created at the instant of the backup.
  - Every restore point is a full image, regardless of how much was read to create it.
  - If the changes of a disk are not known for certain, the whole disk is read. The reason is returned and stored with
    the restore point.
  - If the backup fails, is ended by a signal or loses its controller, the backup job is ended, the guest is thawed,
    the new checkpoint is removed, and no restore point is published.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._attributes.heartbeats
  - kvm.cbt._libvirt.domain
  - kvm.cbt._libvirt
  - kvm.cbt._libvirt.lock
  - kvm.cbt._libvirt.disks
  - kvm.cbt._libvirt.other_hosts
  - kvm.cbt._repository
  - kvm.cbt._repository.create
  - kvm.cbt._repository.workers
  - kvm.cbt._repository.storing
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
    details:
      - Returns how each disk would be read, why, and how many bytes have changed.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Every run creates a new restore point.
options:
  mode:
    description:
      - V(auto) reads what changed if that is known, and the whole disk otherwise.
      - V(full) reads everything that is allocated and starts a new history.
      - V(incremental) reads what changed. It fails if the changes of a disk that can be tracked are not known.
      - V(differential) reads what changed since the last checkpoint and keeps that checkpoint,
        so the next backup reads the same changes again.
      - V(copy) reads everything that is allocated and leaves tracking unchanged.
    type: str
    choices: [auto, full, incremental, differential, copy]
    default: auto
  threshold:
    description:
      - Skip the backup if less than this amount has changed, for example V(64M).
      - Disks that must be read in full are always backed up.
    type: bytes
  audit:
    description:
      - Whether to read all disks in full and check that tracking recorded every change.
      - Blocks that changed without being marked are returned in RV(disks[].unmarked). They are stored, so the restore
        point is correct and later backups can build on it.
    type: bool
    default: false
  offline:
    description:
      - What to do if the domain is shut off. A domain that is paused, crashed or suspended is not shut off.
      - V(read) reads its images and continues the same history. The domain cannot be started during the backup. It
        fails if an image does not hold what the guest sees, for example because it is encrypted.
      - V(start_paused) starts the domain with its virtual CPUs paused for the duration of the backup. This can also
        read disks that cannot be read from their images, such as encrypted ones and those on the network. In check mode
        the domain is not started, and the amount of changes is not known. A domain whose memory is saved to disk
        (C(virsh managedsave)) is refused, because a start consumes that memory. If the run is killed, the domain stays
        paused, and the next backup shuts it off, unless its guest has run.
      - V(skip) skips the backup.
      - A domain that is shut off on this host may run on another host of a cluster. If the last restore point names
        another host and a disk has no locks that reach other hosts, the backup is refused, unless O(offline_confirmed)
        is V(true).
    type: str
    choices: [read, start_paused, skip]
    default: read
  abort_foreign_job:
    description:
      - Whether to end a backup job on the domain that another tool started, or a run of this collection on another
        host.
      - A job that a killed run on the same host left behind is always ended. A container counts as another host.
    type: bool
    default: false
  quiesce:
    description:
      - Whether to freeze the guest's file systems through the guest agent at the instant the backup starts.
      - V(auto) freezes them if the agent responds. V(required) fails if it does not. V(never) does not try.
      - If the guest thaws by itself before the backup has started, as Windows does after 10 seconds, the restore point
        is only crash-consistent and a warning says so. V(required) fails.
      - A guest that another program has frozen is left frozen, and backed up as if it could not be frozen, with a
        warning. V(required) fails.
    type: str
    choices: [auto, required, never]
    default: auto
  freeze_timeout:
    description:
      - Time that the guest agent may take to freeze the file systems, including its freeze hooks, such as V(90)
        (seconds), V(15m), V(24h) or V(7d).
      - After that, the guest is backed up as if it could not be frozen. The freeze may still take place, so the agent
        is queried until the guest is known to be thawed, during the backup and for O(thaw_timeout) after it.
    type: str
    default: "60"
  thaw_timeout:
    description:
      - Time to wait after the backup until the guest is known to be thawed, if the agent did not confirm a thaw during
        the backup. It has the form of O(freeze_timeout). After that, a warning or the error names the command that
        thaws the guest.
    type: str
    default: 5m
  freeze_mountpoints:
    description:
      - Mount points in the guest to freeze. By default, all file systems are frozen.
    type: list
    elements: str
    default: []
  scan_untracked:
    description:
      - Whether to read disks that cannot be tracked (RAW, qcow2 v2, read-only) in full and compare them with the last
        restore point, so that only blocks that differ are stored. With V(false), these disks are left out.
    type: bool
    default: true
  scratch_dir:
    description:
      - Directory on the hypervisor for the backup's socket and scratch files. Scratch files hold the data that the
        guest overwrites during the backup.
      - If O(uri) names another host, libvirt's storage driver creates the files there.
      - On this host, the directory is refused if, in it or in a directory above it, a user can rename files of other
        users, because libvirt creates files in it as root. For example, a directory that belongs to QEMU's user is
        refused. V(/var/tmp) is safe because it has the sticky bit.
    type: path
    default: /var/tmp
  transport:
    description:
      - How to read the disks of a running domain from QEMU.
      - V(unix) requires the task to run on the hypervisor.
      - V(tcp) reads from another host, such as the one with the repository. O(uri) names the hypervisor.
        A domain that is shut off can then be read only with O(offline=start_paused).
    type: str
    choices: [unix, tcp]
    default: unix
  nbd_address:
    description:
      - Name or address at which this host reaches the hypervisor, with O(transport=tcp). QEMU listens on it, and
        QEMU's certificate must include it. The default is the host in O(uri).
    type: str
  nbd_port:
    description:
      - Port on which QEMU listens, with O(transport=tcp). The default is the first free port from 10809 to 10872.
    type: int
  tls:
    description:
      - Whether to encrypt TCP connections. Both sides must present certificates that are signed by the same CA. The
        role P(kvm.cbt.nbd_tls#role) installs them.
      - With V(false), anyone who can reach the port can read the disks while the backup runs.
    type: bool
    default: true
  tls_certificates:
    description:
      - Directory with C(ca-cert.pem), C(client-cert.pem) and C(client-key.pem) on the host that runs the task.
    type: path
    default: /etc/pki/libnbd
  tags:
    description:
      - Labels to store with the restore point.
    type: dict
    default: {}
  pin:
    description:
      - Whether to protect the restore point from removal by retention. M(kvm.cbt.cbt_restore_point) changes this later.
    type: bool
    default: false
requirements:
  - libnbd for Python (C(python3-libnbd) of the distribution)
  - lz4 for Python, with O(compression=lz4); recommended, because it is the default if it is installed
  - zstandard for Python, or Python 3.14, with O(compression=zstd)
  - qemu-img
  - libvirt 7.6 or later and QEMU 6.1 or later
seealso:
  - module: kvm.cbt.cbt_restore
  - module: kvm.cbt.cbt_verify
  - module: kvm.cbt.cbt_backup_info
"""

EXAMPLES = r"""
- name: Back up web1, incrementally if possible
  kvm.cbt.cbt_backup:
    domain: web1
    repository: /backup/kvm

- name: Back up web1 to a removable disk, which may be empty
  kvm.cbt.cbt_backup:
    domain: web1
    repository: /media/disk/kvm
    create_repository: true

- name: Create a file-system consistent backup of the system disk only
  kvm.cbt.cbt_backup:
    domain: db1
    repository: /backup/kvm
    include_disks: [vda]
    quiesce: required
    freeze_timeout: 2m
    tags:
      change: CHG-1742
    pin: true

- name: Back up db1, which has block devices, is shut off, and was moved here from another host
  kvm.cbt.cbt_backup:
    domain: db1
    repository: /backup/kvm
    offline_confirmed: true

- name: Estimate what a backup would read
  kvm.cbt.cbt_backup:
    domain: web1
    repository: /backup/kvm
  check_mode: true
  register: estimate

- name: Back up web1 of kvm1 from the host with the repository
  kvm.cbt.cbt_backup:
    domain: web1
    repository: /backup/kvm
    uri: qemu+ssh://kvm1/system
    transport: tcp
  delegate_to: backup1

- name: Back up web1 to a bucket
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
  description: The new restore point.
  returned: when not in check mode and not skipped
  type: dict
  contains:
    id:
      description: Id of the restore point. Ids sort by time.
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
      description: UTC time of the backup, in ISO 8601.
      type: str
      sample: "2026-11-22T11:30:05.123456+00:00"
    parent:
      description: Id of the restore point that it was compared with, if any.
      type: str
      sample: 20261121T113004Z-99aabbcc
    checkpoint:
      description:
        - Name of the libvirt checkpoint created at the same instant.
        - None for V(copy), or if no disk can be tracked.
      type: str
      sample: cbt-6a23e5f9-20261122T113005Z-1a2b3c4d
    consistency:
      description: V(filesystem) if the guest's file systems were frozen, otherwise V(crash).
      type: str
      sample: filesystem
disks:
  description: Each disk of the domain and how it was read, or would be.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Disk target.
      type: str
      sample: vda
    mode:
      description: How the disk is read - V(full), V(incremental), V(differential), V(copy), V(scan) or V(skipped).
      type: str
      sample: incremental
    reason:
      description: Why the disk is read that way, and how to change that.
      type: str
      sample: >-
        Changes since restore point 20261121T113004Z-99aabbcc are known from checkpoint
        cbt-6a23e5f9-20261121T113004Z-99aabbcc.
    virtual_size:
      description: Size of the disk in bytes.
      type: int
      sample: 10737418240
    dirty_bytes:
      description: Number of bytes to examine.
      type: int
      sample: 67108864
    read_bytes:
      description: Number of bytes read. The rest of RV(disks[].dirty_bytes) was known to be zero.
      returned: when not in check mode
      type: int
      sample: 66060288
    zero_bytes:
      description: Number of bytes found to be zero.
      returned: when not in check mode
      type: int
      sample: 1048576
    unchanged_bytes:
      description: Number of bytes read that match the parent and were not stored again.
      returned: when not in check mode
      type: int
      sample: 524288
    deduplicated_bytes:
      description:
        - Number of bytes that were not stored because the repository already had them, from elsewhere on the disk, from
          another domain or from another time.
      returned: when not in check mode
      type: int
      sample: 262144
    new_bytes:
      description: Number of bytes stored, before compression.
      returned: when not in check mode
      type: int
      sample: 65536000
    stored_bytes:
      description: Number of bytes stored, after compression.
      returned: when not in check mode
      type: int
      sample: 31457280
    busy:
      description:
        - Share of the workers' time that each kind of work took, from 0 to 1. The workers' time is the duration of
          reading the disk, multiplied by the number of workers that had work. In the rest of the time, workers waited
          for each other or for more work.
        - V(reading) is reading from QEMU or from the image. V(hashing) includes the comparison with the parent restore
          point. V(searching) is the search for blocks that are already stored. V(storing) includes waiting for the
          repository. V(throttled) is waiting because of O(rate_limit).
      returned: when not in check mode
      type: dict
      sample:
        reading: 0.93
        hashing: 0.03
        searching: 0.01
        compressing: 0.01
        encrypting: 0.0
        storing: 0.01
        throttled: 0.0
    healed_blocks:
      description:
        - Number of damaged blocks of earlier restore points that were found on the disk and stored again.
          This repairs these blocks in all restore points that share them.
      returned: when not in check mode
      type: int
      sample: 0
    unmarked:
      description: Ranges that changed without being marked, as found with O(audit=true).
      returned: when not in check mode
      type: list
      elements: dict
      contains:
        offset:
          description: Offset of the first byte on the disk.
          type: int
          sample: 1048576
        length:
          description: Number of bytes.
          type: int
          sample: 65536
skipped:
  description: Why the backup was skipped.
  returned: when O(threshold), O(offline=skip) or O(silent_hosts) held it back
  type: str
  sample: 3 MiB have changed on web1, which is less than the threshold of 64 MiB.
duration:
  description: Duration of the backup in seconds, without Ansible's startup time.
  returned: when not in check mode
  type: float
  sample: 2.417
limited_by:
  description:
    - The kind of work that limited the reading of the disks, according to RV(disks[].busy). None if no disk was read.
  returned: when not in check mode
  type: str
  sample: "Reading the disk: busy 93 % of the time."
warnings:
  description: Warnings, for example about a disk that had to be read in full.
  returned: when there are any
  type: list
  elements: str
"""

import contextlib

from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor, _options, _repository, _results, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.backup import BackupRequest, backup
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.plan import BackupPolicy
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.result import BackupResult
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.run import BackupOptions
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup.transport import Transport


def _request(module: _runtime.Module) -> BackupRequest:
    params = module.params
    policy = BackupPolicy(
        mode=params["mode"],
        selection=_hypervisor.selection(module),
        scan_untracked=params["scan_untracked"],
        threshold=params["threshold"],
        audit=params["audit"],
        offline=params["offline"],
        others=_hypervisor.other_hosts(module),
    )
    options = BackupOptions(
        compression=_repository.compression(module),
        compression_level=params["compression_level"],
        quiesce=params["quiesce"],
        freeze_mountpoints=tuple(params["freeze_mountpoints"]),
        freeze_timeout=params["freeze_timeout"],
        thaw_timeout=params["thaw_timeout"],
        scratch_dir=params["scratch_dir"],
        workers=params["workers"],
        rate_limit=params["rate_limit"],
        dedup=params["dedup"],
        tags={str(key): str(value) for key, value in params["tags"].items()},
        pin=params["pin"],
        transport=Transport(
            params["transport"], params["nbd_address"], params["nbd_port"], params["tls"], params["tls_certificates"]
        ),
    )
    return BackupRequest(
        params["domain"], policy, options, params["offline"] == "start_paused", params["abort_foreign_job"]
    )


def _disks(result: BackupResult) -> list[dict[str, object]]:
    disks = []
    for disk in result.disks:
        details: dict[str, object] = {
            key: getattr(disk, key) for key in ("target", "mode", "reason", "virtual_size", "dirty_bytes")
        }
        if disk.statistics is not None:
            details.update(vars(disk.statistics))
            details["busy"] = disk.shares
            details["healed_blocks"] = disk.healed_blocks
            details["unmarked"] = [{"offset": offset, "length": length} for offset, length in disk.unmarked]
        disks.append(details)
    return disks


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.DOMAIN,
            **_options.LIBVIRT,
            **_options.LOCK,
            **_options.DISKS,
            **_options.OTHER_HOSTS,
            **_options.REPOSITORY,
            **_options.CREATE_REPOSITORY,
            **_options.WORKERS,
            **_options.STORING,
            **_options.LOG,
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
            "freeze_timeout": {"type": "str", "default": "60"},
            "thaw_timeout": {"type": "str", "default": "5m"},
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
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    _runtime.require(module, "libvirt", "libvirt_qemu", "nbd")
    control = _runtime.interruptible(module)
    with _runtime.reported(module), contextlib.ExitStack() as stack:
        request = _request(module)
        session = stack.enter_context(_hypervisor.session(module))
        repository = _repository.repository_or_none(module)
        result = backup(session, repository, request, control, check_only=module.check_mode)
    for warning in result.warnings:
        module.warn(warning)
    outcome: dict[str, object] = {"changed": result.skipped is None, "disks": _disks(result)}
    if result.skipped is not None:
        outcome["skipped"] = result.skipped
    if result.point is not None:
        outcome.update(
            restore_point=_results.point_summary(result.point), duration=result.duration, limited_by=result.limited_by
        )
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
