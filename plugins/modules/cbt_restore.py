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
  - Writes disks of a restore point to new images or onto block devices. Every block is proven by its SHA-256 before it is written.
  - An image appears under its name only when all disks asked for are complete and on disk.
    If a block is damaged, or the restore fails or is ended by a signal, none of them is left. A device that was written to then holds nothing.
  - With O(define=true) the machine comes back. Its configuration is adapted, firmware variables, kernel, initrd and the state of an emulated TPM
    are put in place, and the domain is defined as the last step, so that it never stands on something half restored.
  - Needs neither the domain nor the hypervisor the backup was taken on. For another host, run the task there, on shared storage
    or with a repository that host can reach. With a remote O(uri), images are written on the host the task runs on, which must be storage both see,
    and the domain is defined on the other. It is refused if the other host does not see them.
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
      - Makes all checks and returns which images would be written, and the configuration that would be defined.
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
      - Folder for the images, called C(DOMAIN-TARGET.FORMAT), and with O(define=true) for the machine's other files, called C(DOMAIN-nvram) and the like.
        It must exist. All files are created directly in this folder, except for the state of an emulated TPM, which goes where libvirt looks
        for it.
    type: path
  disk_map:
    description:
      - Absolute paths of images or block devices, such as logical volumes, or URIs of NBD exports, by disk target. Without O(dest), only these
        disks are restored.
      - A device must be large enough and free. What else it holds behind the restored disk stays.
      - An NBD export, such as C(nbds://host/name) or C(nbd+unix:///name?socket=/path), must be writable, large enough and used by nobody else, which
        cannot be seen from here. It is given the disk's bytes whatever O(format) is. It needs C(python3-libnbd), and O(define) does not go with it.
    type: dict
    default: {}
  tls:
    description:
      - Whether an NBD export on another host must be reached over TLS. C(nbd://) is then accepted for this host only.
      - With V(false), anyone on the network path can read and change the disk. Use it in a trusted network only. C(nbds://) is always verified.
    type: bool
    default: true
  tls_certificates:
    description:
      - Folder on the host of the task with the CA of the servers in C(nbds://) URIs, C(ca-cert.pem),
        and C(client-cert.pem) and C(client-key.pem) if they ask for a certificate.
      - The certificate of a server must bear the hostname in the URI.
      - By default, the CAs of the system are used. This requires libnbd 1.18.5, 1.20.2, or 1.22 and later. Earlier versions do not verify the server
        against them, and the restore is refused.
    type: path
  format:
    description:
      - Format of the images, also on devices.
      - A V(qcow2) image has the cluster size, the compression type, extended L2 entries and lazy refcounts of the original if that was qcow2 too.
        It is always qcow2 v3.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  preallocation:
    description:
      - What is allocated of what the images could hold, as C(qemu-img) understands it. V(none) makes them sparse.
      - V(metadata) is for V(qcow2) only. Devices are as they are.
    type: str
    choices: ["none", metadata, falloc, full]
    default: none
  force:
    description:
      - Whether existing files are replaced once the restored ones are complete, and block devices overwritten.
      - Files and devices of a running domain are never replaced, nor is an image file that another QEMU process on this host has open.
      - If libvirt then refuses to define the domain, replaced files stay replaced. The message names them.
      - With O(define=true) also whether a domain that has the same name and UUID and is shut off gets the restored configuration.
    type: bool
    default: false
  define:
    description:
      - Whether the domain is defined. Its configuration is the persistent one it had, adapted to this host and to the options below.
      - Disks that are not restored are removed from it, and media are taken out of their drives. RV(changes) lists them.
      - Unless O(trust_definition=true), the domain gets nothing of the host from it but networks, bridges and the usual firmware.
    type: bool
    default: false
  trust_definition:
    description:
      - Whether the configuration in the repository is taken as it is. It can then give the machine files, folders, devices and programs of the host.
        Set it only if you trust everyone who can write to the repository as you trust root of this host, also if the repository is encrypted.
      - With V(false), only what is known to stay within the guest is taken. What else the configuration has is removed where the machine runs without it,
        such as options for QEMU, security labels, scripts, log files, media and sockets, and RV(changes) lists it. The restore is refused where it does not,
        such as for passed-through devices, shared folders, memory in files and a kernel that was not saved. The message lists all of these.
      - Paths in O(disk_map) and networks in O(networks) are yours, and are not affected.
      - With V(true), media that are not on this host are still taken out, and passed-through devices are removed on another host than the original's.
    type: bool
    default: false
  start:
    description:
      - Whether the domain is started. If that fails it stays defined.
    type: bool
    default: false
  autostart:
    description:
      - Whether the domain starts with the host. By default as the original if it keeps the UUID, else not.
    type: bool
  new_name:
    description:
      - Name of the restored machine, and of its images. By default the original's.
    type: str
  uuid:
    description:
      - Whether the machine keeps its UUID, or becomes another one that may run beside the original.
      - The latter shares nothing with the original. Files of consoles, ports of displays, names of network devices are replaced,
        passed-through devices, shared folders and the like removed, whatever O(trust_definition) is.
      - By default V(new) with O(new_name), else V(keep).
    type: str
    choices: [new, keep]
  mac:
    description:
      - Whether network interfaces keep their MAC addresses. By default as O(uuid).
    type: str
    choices: [new, keep]
  networks:
    description:
      - Names of libvirt networks that network interfaces are connected to, by the name of the network, bridge or device they were on.
        V(*) stands for every other, whatever its kind.
      - An interface that is connected anew loses what belonged to the old network, such as VLAN tags. The networks are looked for when the domain is started.
    type: dict
    default: {}
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

- name: Bring a lost machine back and start it
  kvm.cbt.cbt_restore:
    domain: web1
    repository: /backup/kvm
    dest: /var/lib/libvirt/images
    define: true
    start: true

- name: Run a copy of last week's machine beside it
  kvm.cbt.cbt_restore:
    domain: web1
    repository: /backup/kvm
    until: "2026-11-15"
    dest: /var/lib/libvirt/images
    define: true
    new_name: web1-last-week
    start: true

- name: Run a copy that reaches nothing but the isolated network rehearsal
  kvm.cbt.cbt_restore:
    domain: web1
    repository: /backup/kvm
    dest: /var/lib/libvirt/images
    define: true
    new_name: rehearsal-web1
    networks:
      "*": rehearsal
    start: true

- name: Bring back a machine with devices of this host, from a repository that only you can write to
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
  description: The domain's configuration as it was, with O(define=true) as it was defined; without secrets.
  returned: always
  type: str
  sample: <domain type='kvm'>...</domain>
domain:
  description: Name the domain had, or with O(define=true) has.
  returned: always
  type: str
  sample: web1
uuid:
  description: UUID of the domain. In check mode, one that would be new is another in the run itself.
  returned: with O(define=true)
  type: str
  sample: 9d0a7f5b-8f0e-4c2c-8e51-4f2e3a1b6c7d
files:
  description: Other files of the machine that were restored, or would be, with C(kind) (V(nvram), V(loader), V(kernel), V(initrd), V(dtb), V(tpm)) and C(path).
  returned: with O(define=true)
  type: list
  elements: dict
  sample: [{"kind": "nvram", "path": "/var/lib/libvirt/images/web1-nvram"}]
changes:
  description:
    - What of the configuration is not as it was, besides identity and paths, also in check mode.
    - After 100 parts that were removed because the configuration is not trusted, only the number of the others is given.
  returned: with O(define=true)
  type: list
  elements: str
  sample: ["vdc is not part of this restore and was removed."]
duration:
  description: Seconds the restore took, without Ansible's start-up.
  returned: when not in check mode
  type: float
  sample: 8.125
"""

import contextlib

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _module
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.blocks.nbd_target import NbdTls
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.errors import HypervisorError
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.restore.restore import (
    MachineWish,
    RestoreRequest,
    RestoreResult,
    restore,
)

_DEFINED = (
    "start",
    "autostart",
    "uuid",
    "mac",
    "networks",
    "trust_definition",
)  # options that mean something only for a domain


def _machine(module: AnsibleModule) -> MachineWish | None:
    params = module.params
    if not params["define"]:
        given = [option for option in _DEFINED if params[option]]
        if given:
            module.fail_json(msg=f"{', '.join(given)} cannot be without define: true.")
        return None
    uuid = params["uuid"] or ("new" if params["new_name"] else "keep")
    return MachineWish(
        new_uuid=uuid == "new",
        new_macs=(params["mac"] or uuid) == "new",
        networks={str(was): str(network) for was, network in params["networks"].items()},
        start=params["start"],
        autostart=params["autostart"],
        trust_definition=params["trust_definition"],
    )


def _request(module: AnsibleModule) -> RestoreRequest:
    params = module.params
    return RestoreRequest(
        domain=params["domain"],
        restore_point=params["restore_point"],
        until=params["until"],
        dest=params["dest"],
        disk_map={str(target): str(path) for target, path in params["disk_map"].items()},
        format=params["format"],
        preallocation=params["preallocation"],
        selection=_module.selection(module),
        force=params["force"],
        new_name=params["new_name"],
        machine=_machine(module),
        workers=_module.check_workers(module),
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
        }
        for disk in result.disks
    ]
    outcome: dict[str, object] = {
        "restore_point": _module.point_summary(result.point),
        "disks": disks,
        "domain": result.point.domain,
    }
    outcome["domain_xml"] = _module.without_secrets(result.domain_xml)
    machine = result.machine
    if machine is not None:
        files = [{"kind": file.saved.kind, "path": file.path} for file in machine.files]
        outcome.update(domain=machine.name, uuid=machine.uuid, files=files, changes=list(machine.changes))
    return outcome


def main() -> None:
    """Run the module."""
    module = _module.Module(
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
            "tls": {"type": "bool", "default": True},
            "tls_certificates": {"type": "path"},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "preallocation": {"type": "str", "choices": ["none", "metadata", "falloc", "full"], "default": "none"},
            "force": {"type": "bool", "default": False},
            "define": {"type": "bool", "default": False},
            "start": {"type": "bool", "default": False},
            "autostart": {"type": "bool"},
            "new_name": {"type": "str"},
            "uuid": {"type": "str", "choices": ["new", "keep"]},
            "mac": {"type": "str", "choices": ["new", "keep"]},
            "networks": {"type": "dict", "default": {}},
            "trust_definition": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if module.params["dest"] is None and not module.params["disk_map"]:
        module.fail_json(
            msg="Nothing says where to restore to. Set dest to a folder, or disk_map to a path for each disk."
        )
    interrupt = _module.interruptible()
    with _module.reported(module), contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(_module.session_if_installed(module))
        except HypervisorError as error:
            if module.params["define"]:
                raise
            # A restore must work where no libvirt runs; QEMU's own image locks still guard disks in use.
            module.debug(str(error))
            session = None
        result = restore(
            _module.existing_repository(module), _request(module), session, interrupt, check_only=module.check_mode
        )
    for warning in result.warnings:
        module.warn(warning)
    duration: dict[str, object] = {} if module.check_mode else {"duration": result.duration}
    module.exit_json(changed=True, **_outcome(result), **duration)


if __name__ == "__main__":
    main()
