#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_restore
short_description: Restore disks of a KVM domain, or the whole machine, from a restore point
version_added: 0.1.0
description:
  - Writes disks of a restore point to new images or block devices. Every block is verified by its SHA-256 digest before
    it is written.
  - Images get their final names only when all requested disks are complete and on stable storage. If a block is
    damaged, or the restore fails, is ended by a signal or loses its controller, no image is left. A block device that
    was written to then has no usable content.
  - With O(define=true), the machine is restored as well. Its configuration is adapted to this host. Its firmware
    variables, kernel, initrd and the state of its emulated TPM are restored. The domain is defined last, so it never
    refers to a partial restore.
  - Requires neither the domain nor the hypervisor from which the backup was made.
  - To restore to another host, run the task there, with a repository that the host can reach.
  - With a remote O(uri), images are written on the host that runs the task, to storage that both hosts share, and the
    domain is defined on the remote host. The restore is refused if the remote host cannot see the images.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._attributes.heartbeats
  - kvm.cbt._libvirt.domain
  - kvm.cbt._libvirt
  - kvm.cbt._libvirt.disks
  - kvm.cbt._repository
  - kvm.cbt._repository.workers
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
    details:
      - Performs all checks and returns the images that would be written and the configuration that would be defined.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - An existing image is never assumed to be a restored one. A second run fails unless O(force=true).
      - With O(skip_existing=true), a second run changes nothing.
options:
  restore_point:
    description:
      - Id of the restore point, or V(latest). An id cannot be combined with O(until).
    type: str
    default: latest
    aliases: [restore_points]
  until:
    description:
      - Restore the latest restore point taken at or before this time, such as V(2026-11-22 14:30) or
        V(2026-11-22T14:30:00+01:00).
      - A time without a time zone is UTC. A date without a time includes the whole day.
    type: str
  dest:
    description:
      - Existing directory for the images, which are named C(DOMAIN-TARGET.FORMAT). With O(define=true), also for the
        other files of the machine, such as C(DOMAIN-nvram).
      - All files are created directly in this directory, except for the state of an emulated TPM, which is restored to
        where libvirt expects it.
    type: path
  disk_map:
    description:
      - Destination of each disk, by disk target. A destination is the absolute path of an image or a block device, such
        as a logical volume, or the URI of an NBD export. Without O(dest), only these disks are restored.
      - A block device must be large enough and not in use. Data beyond the end of the restored disk is left unchanged.
      - An NBD export, such as C(nbds://host/name) or C(nbd+unix:///name?socket=/path), must be writable and large
        enough. It must not be in use by anyone else, which this module cannot check.
      - An NBD export receives the bytes of the disk, regardless of O(format). It requires C(python3-libnbd) and cannot
        be combined with O(define).
      - At least one of O(dest) and O(disk_map) is required.
    type: dict
  tls:
    description:
      - Whether to require TLS for NBD exports on other hosts. C(nbd://) is then accepted for this host only.
      - With V(false), anyone on the network path can read and change the disk. Use it only on a trusted network.
        C(nbds://) always verifies the server.
    type: bool
    default: true
  tls_certificates:
    description:
      - Directory on the host that runs the task with the CA for servers in C(nbds://) URIs, C(ca-cert.pem),
        and with C(client-cert.pem) and C(client-key.pem) if the servers request a certificate.
      - The certificate of a server must include the hostname in the URI.
      - By default, the CAs of the system are used. This requires libnbd 1.18.5, 1.20.2, or 1.22 and later. Earlier
        versions do not verify the server against these CAs, so the restore is refused.
    type: path
  format:
    description:
      - Format of the images, including those written to block devices.
      - A V(qcow2) image is always of version 3. If the original was qcow2, the image has the same cluster size,
        compression type, extended L2 entries and lazy refcounts.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  preallocation:
    description:
      - How to preallocate images, with the meaning of C(qemu-img). V(none) creates sparse images.
      - V(metadata) requires V(qcow2). This option does not affect block devices.
    type: str
    choices: ["none", metadata, falloc, full]
    default: none
  force:
    description:
      - Whether to overwrite block devices, and to replace existing files once the restored ones are complete.
      - Files and block devices of a running domain are never replaced. Neither is an image file that a QEMU process on
        this host has open.
      - A path is refused if a domain of this host reads it as encrypted, as a slice or in a format other than
        O(format), unless O(define=true) replaces the definition of that domain. It is also refused if the memory of
        that domain is saved to disk.
      - If libvirt then refuses to define the domain, the replaced files remain replaced. The message names them.
      - With O(define=true), also whether to redefine a domain that has the same name and UUID and is shut off.
    type: bool
    default: false
  skip_existing:
    description:
      - Whether to do nothing if the domain that O(define=true) would define already exists, running or not. A domain
        counts if it has the same name, and the UUID of the original unless O(uuid=new). Its disks are not checked.
      - With O(start=true), it is started if it is shut off.
      - O(force=true) takes precedence.
    type: bool
    default: false
  define:
    description:
      - Whether to define the domain. The configuration is the domain's persistent one, adapted to this host and to the
        options below.
      - Disks that are not restored are removed from the configuration, and media are removed from their drives.
        RV(changes) lists both.
      - Unless O(trust_definition=true), the configuration gives the domain access only to networks, bridges and the
        standard firmware of the host.
    type: bool
    default: false
  trust_definition:
    description:
      - Whether to use the configuration in the repository as it is. It can then give the machine access to files,
        directories, devices and programs of the host. Set it only if you trust everyone who can write to the repository
        as much as root on this host. This is also true for an encrypted repository.
      - With V(false), only parts that are known to be confined to the guest are used. Other parts that the machine does
        not need to run are removed and listed in RV(changes). Examples are options for QEMU, security labels, scripts,
        log files, media and sockets. If the machine needs them, the restore is refused, and the message lists them all.
        Examples are passed-through devices, shared folders, memory in files and a kernel that was not saved.
      - Paths in O(disk_map) and networks in O(networks) come from you and are not affected.
      - With V(true), media that do not exist on this host are still removed, and so are passed-through devices if this
        is not the host of the original.
    type: bool
    default: false
  start:
    description:
      - Whether to start the domain. If starting it fails, it stays defined.
    type: bool
    default: false
  autostart:
    description:
      - Whether to start the domain when the host boots. By default, the setting of the original applies if the domain
        keeps its UUID. Otherwise the default is V(false).
    type: bool
  new_name:
    description:
      - Name of the restored machine, which is also used for the names of its images. By default, the original name.
    type: str
  uuid:
    description:
      - Whether to keep the UUID of the machine, or to create a new machine that can run beside the original.
      - A new machine shares nothing with the original. Console files, display ports and the names of network devices
        are replaced. Passed-through devices, shared folders and the like are removed, regardless of
        O(trust_definition).
      - The default is V(new) with O(new_name), and V(keep) otherwise.
    type: str
    choices: [new, keep]
  mac:
    description:
      - Whether to keep the MAC addresses of network interfaces. The default is the value of O(uuid).
    type: str
    choices: [new, keep]
  networks:
    description:
      - Libvirt networks to connect the network interfaces to. The keys are the names of the networks, bridges or
        devices that the interfaces used before. V(*) matches all others, of any kind.
      - An interface that is connected to another network loses the settings of the old one, such as VLAN tags.
      - The networks must exist when the domain is started, not before.
    type: dict
    default: {}
  isolated_network:
    description:
      - Name of a libvirt network to connect all network interfaces to, so that a copy can run beside the original. It
        is created and started if needed. A network that leads out of the host is refused.
      - It cannot be combined with O(networks).
    type: str
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

- name: Restore a lost machine and start it
  kvm.cbt.cbt_restore:
    domain: web1
    repository: /backup/kvm
    dest: /var/lib/libvirt/images
    define: true
    start: true

- name: Run a copy of last week's machine beside the original
  kvm.cbt.cbt_restore:
    domain: web1
    repository: /backup/kvm
    until: "2026-11-15"
    dest: /var/lib/libvirt/images
    define: true
    new_name: web1-last-week
    start: true

- name: Run a copy that is connected only to the isolated network rehearsal
  kvm.cbt.cbt_restore:
    domain: web1
    repository: /backup/kvm
    dest: /var/lib/libvirt/images
    define: true
    new_name: rehearsal-web1
    networks:
      "*": rehearsal
    start: true

- name: Restore a machine that uses devices of this host, from a repository that only you can write to
  kvm.cbt.cbt_restore:
    domain: router1
    repository: /backup/kvm
    dest: /var/lib/libvirt/images
    define: true
    trust_definition: true

- name: Restore a disk onto a logical volume
  kvm.cbt.cbt_restore:
    domain: db1
    repository: /backup/kvm
    format: raw
    disk_map:
      vda: /dev/vg0/db1
    force: true
"""

RETURN = r"""
restore_point:
  description: The selected restore point, as M(kvm.cbt.cbt_backup) returns it.
  returned: unless RV(skipped) is returned
  type: dict
  sample: {"id": "20261122T113005Z-1a2b3c4d", "domain": "web1"}
disks:
  description: Disks that were restored, or would be.
  returned: unless RV(skipped) is returned
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
      description: Number of bytes written. The rest of the disk is zero. None in check mode.
      type: int
      sample: 4294967296
    busy:
      description:
        - Share of the workers' time that each kind of work took, from 0 to 1, as in
          RV(kvm.cbt.cbt_backup#module:disks[].busy). Empty in check mode.
        - V(reading) is reading from the repository. V(proving) includes decrypting and decompressing.
      type: dict
      sample: {reading: 0.21, proving: 0.17, writing: 0.58}
domain_xml:
  description:
    - Configuration of the domain at the time of the backup, or with O(define=true), as it was defined.
      It contains no secrets.
  returned: unless RV(skipped) is returned
  type: str
  sample: <domain type='kvm'>...</domain>
domain:
  description: Name of the domain at the time of the backup, or with O(define=true), its name now.
  returned: unless RV(skipped) is returned
  type: str
  sample: web1
uuid:
  description: UUID of the domain. In check mode, a new UUID differs from the one that the run then creates.
  returned: with O(define=true)
  type: str
  sample: 9d0a7f5b-8f0e-4c2c-8e51-4f2e3a1b6c7d
files:
  description:
    - Other files of the machine that were restored, or would be, each with its C(kind) (V(nvram), V(loader), V(kernel),
      V(initrd), V(dtb) or V(tpm)) and its C(path).
  returned: with O(define=true)
  type: list
  elements: dict
  sample: [{"kind": "nvram", "path": "/var/lib/libvirt/images/web1-nvram"}]
changes:
  description:
    - Differences from the original configuration, other than identity and paths. Also returned in check mode.
    - If more than 100 parts were removed because the configuration is not trusted, only the number of the others is
      given.
  returned: with O(define=true)
  type: list
  elements: str
  sample: ["vdc is not part of this restore and was removed."]
duration:
  description: Duration of the restore in seconds, without Ansible's startup time.
  returned: when not in check mode
  type: float
  sample: 8.125
limited_by:
  description:
    - The kind of work that limited the writing of the disks, according to RV(disks[].busy). None if no block was
      written.
  returned: when not in check mode
  type: str
  sample: "Writing the disk: busy 58 % of the time."
skipped:
  description: Why nothing was restored. Of the other values, only RV(domain_started) is then returned.
  returned: when O(skip_existing) held the restore back
  type: str
  sample: "web1 exists already."
domain_started:
  description: Whether the domain was started, or would be.
  returned: with O(define=true)
  type: bool
  sample: false
"""

import contextlib

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor, _options, _repository, _results, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.errors import HypervisorError, Refused
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.restore.existing import begin, existing
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.restore.restore import (
    MachineOptions,
    NbdTls,
    RestoreRequest,
    RestoreResult,
    restore,
)

# Options that require a domain.
_DEFINED = (
    "skip_existing",
    "start",
    "autostart",
    "uuid",
    "mac",
    "networks",
    "isolated_network",
    "trust_definition",
)


def _machine(module: AnsibleModule) -> MachineOptions | None:
    params = module.params
    if not params["define"]:
        given = [option for option in _DEFINED if params[option]]
        if given:
            raise Refused(f"define: true is required with {', '.join(given)}.")
        return None
    uuid = params["uuid"] or ("new" if params["new_name"] else "keep")
    return MachineOptions(
        new_uuid=uuid == "new",
        new_macs=(params["mac"] or uuid) == "new",
        networks={str(was): str(network) for was, network in params["networks"].items()},
        start=params["start"],
        autostart=params["autostart"],
        trust_definition=params["trust_definition"],
        isolated_network=params["isolated_network"],
    )


def _request(module: AnsibleModule) -> RestoreRequest:
    params = module.params
    disk_map = params["disk_map"] or {}
    if params["dest"] is None and not disk_map:
        raise Refused("Nothing says where to restore to. Set dest to a folder, or disk_map to a path for each disk.")
    return RestoreRequest(
        domain=params["domain"],
        restore_point=params["restore_point"],
        until=params["until"],
        dest=params["dest"],
        disk_map={str(target): str(path) for target, path in disk_map.items()},
        format=params["format"],
        preallocation=params["preallocation"],
        selection=_hypervisor.selection(module),
        force=params["force"],
        new_name=params["new_name"],
        machine=_machine(module),
        workers=params["workers"],
        nbd_tls=NbdTls(params["tls"], params["tls_certificates"]),
    )


def _outcome(result: RestoreResult) -> dict[str, object]:
    disks = [
        {
            "target": disk.target,
            "path": disk.path,
            "format": disk.format,
            "virtual_size": disk.size,
            "written_bytes": disk.written_bytes,
            "busy": disk.shares,
        }
        for disk in result.disks
    ]
    outcome: dict[str, object] = {
        "restore_point": _results.point_summary(result.point),
        "disks": disks,
        "domain": result.point.domain,
    }
    outcome["domain_xml"] = result.shown_xml
    machine = result.machine
    if machine is not None:
        files = [{"kind": file.saved.kind, "path": file.path} for file in machine.files]
        outcome.update(domain=machine.name, uuid=machine.uuid, files=files, changes=list(machine.changes))
        outcome["domain_started"] = machine.options.start
    return outcome


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.DOMAIN,
            **_options.LIBVIRT,
            **_options.DISKS,
            **_options.REPOSITORY,
            **_options.WORKERS,
            **_options.LOG,
            "restore_point": {"type": "str", "default": "latest", "aliases": ["restore_points"]},
            "until": {"type": "str"},
            "dest": {"type": "path"},
            "disk_map": {"type": "dict"},
            "tls": {"type": "bool", "default": True},
            "tls_certificates": {"type": "path"},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "preallocation": {"type": "str", "choices": ["none", "metadata", "falloc", "full"], "default": "none"},
            "force": {"type": "bool", "default": False},
            "skip_existing": {"type": "bool", "default": False},
            "define": {"type": "bool", "default": False},
            "start": {"type": "bool", "default": False},
            "autostart": {"type": "bool"},
            "new_name": {"type": "str"},
            "uuid": {"type": "str", "choices": ["new", "keep"]},
            "mac": {"type": "str", "choices": ["new", "keep"]},
            "networks": {"type": "dict", "default": {}},
            "isolated_network": {"type": "str"},
            "trust_definition": {"type": "bool", "default": False},
        },
        mutually_exclusive=[("restore_point", "until"), ("networks", "isolated_network"), _options.ONE_PASSPHRASE],
        required_one_of=[("dest", "disk_map")],
        supports_check_mode=True,
    )
    control = _runtime.interruptible(module)
    with _runtime.reported(module), contextlib.ExitStack() as stack:
        request = _request(module)
        try:
            session = stack.enter_context(_hypervisor.session_if_installed(module))
        except HypervisorError as error:
            if module.params["define"]:
                raise
            # A restore must work where no libvirt runs; QEMU's own image locks still guard disks in use.
            module.debug(str(error))
            session = None
        repository = _repository.existing_repository(module)
        skip = module.params["skip_existing"] and not module.params["force"]
        there = existing(session, repository, request) if session and skip else None
        if there is not None and request.machine is not None:
            started = begin(there, request.machine, module.check_mode)
            reason = f"{there.name} exists already{' and was shut off, so it is started' if started else ''}."
            module.exit_json(changed=started, domain_started=started, skipped=reason)
        result = restore(repository, request, session, control, check_only=module.check_mode)
    for warning in result.warnings:
        module.warn(warning)
    duration: dict[str, object] = (
        {} if module.check_mode else {"duration": result.duration, "limited_by": result.limited_by}
    )
    module.exit_json(changed=True, **_outcome(result), **duration)


if __name__ == "__main__":
    main()
