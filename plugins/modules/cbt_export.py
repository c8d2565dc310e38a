#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_export
short_description: Serve the disks of a restore point as NBD exports
version_added: 0.1.0
description:
  - Serves the disks of a restore point over NBD, without restoring them. QEMU, C(qemu-img), C(nbdcopy), C(nbdfuse) and
    other NBD clients read them at once. Only the blocks that are read are fetched from the repository, and each is
    proven before it is sent.
  - The server is a process of its own, which outlives the task. It starts again by itself if it dies, and clients that
    connect in between wait. Where systemd runs, it is a transient unit called C(kvm-cbt-export-NAME.service).
  - The restore point is held until the export is ended, so M(kvm.cbt.cbt_retention) keeps it. A hold does not expire,
    and is ended by O(state=absent), which can run on any host.
  - An export does not survive a reboot of the host. Run the task again to serve it again.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._attributes.heartbeats
  - kvm.cbt._libvirt.disks
  - kvm.cbt._repository
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
    details:
      - Returns the export as it would be. The disks are not opened.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - An export that exists with the same options is left as it is. If its server does not run, it is started again.
      - An export that exists with other options is refused.
options:
  domain:
    description:
      - Name or UUID of the domain at the time of the backup. Required with O(state=present).
    type: str
    aliases: [guest]
  state:
    description:
      - V(present) serves the disks.
      - V(absent) ends the export O(name), or all exports of O(domain) on this host. First the server ends, which
        disconnects its clients, and then the hold.
    type: str
    choices: [present, absent]
    default: present
  name:
    description:
      - Name of the export, of up to 100 letters, digits, dots, hyphens and underscores. By default, made of the name of
        the domain and the id of the restore point.
    type: str
  restore_point:
    description:
      - Id of the restore point, or V(latest). An id cannot be combined with O(until).
    type: str
    default: latest
    aliases: [restore_points]
  until:
    description:
      - Export the latest restore point taken at or before this time, such as V(2026-11-22 14:30) or
        V(2026-11-22T14:30:00+01:00).
      - A time without a time zone is UTC. A date without a time includes the whole day.
    type: str
  host:
    description:
      - Hostname of the host that serves the export O(name), with O(state=absent). By default, this host.
      - On any other host, only the hold ends. Use it for a host that is lost. A server that still runs there fails once
        the data is deleted.
    type: str
  socket_dir:
    description:
      - Directory for the Unix socket C(NAME.sock). Only root, or the user that runs the task, may be able to write to
        it. It is created if it is missing.
      - By default C(/run/kvm-cbt-exports) for root, and a directory in E(XDG_RUNTIME_DIR) for other users.
      - The path of the socket must not have more than 107 bytes.
    type: path
  socket_owner:
    description:
      - User that owns the socket, such as V(libvirt-qemu). By default, the user that runs the task.
    type: str
  socket_group:
    description:
      - Group of the socket. By default, the group of the user that runs the task.
    type: str
  socket_mode:
    description:
      - Mode of the socket in octal. Who can write to it can read the disks.
    type: str
    default: "0600"
  address:
    description:
      - Serve over TCP on this address of the host instead of a Unix socket.
    type: str
  port:
    description:
      - TCP port, with O(address).
    type: int
    default: 10809
  tls:
    description:
      - Whether to require TLS over TCP, with certificates of both sides that are signed by the same CA. The role
        P(kvm.cbt.nbd_tls#role) installs them.
      - With V(false), anyone who can reach the port can read the disks.
    type: bool
    default: true
  tls_certificates:
    description:
      - Directory with C(ca-cert.pem), C(server-cert.pem) and C(server-key.pem) on this host.
    type: path
    default: /etc/pki/qemu
  writable:
    description:
      - Whether clients can write. Their writes go to a private overlay, which all clients of the export see, and which
        is discarded when the export ends. The repository is never changed.
    type: bool
    default: false
  overlay_dir:
    description:
      - Directory for what clients write, with O(writable=true).
    type: path
    default: /var/tmp
  cache_dir:
    description:
      - Directory on a local disk for a cache of the repository. Set it if the repository is far away, such as on S3.
        Larger parts are then fetched at once, and ahead where a client reads sequentially.
      - The cache has no name in the directory, and is gone when the export ends. It is encrypted if the repository is.
    type: path
  cache_size:
    description:
      - Maximum size of the cache, 64 MiB or more.
    type: bytes
    default: 10G
seealso:
  - module: kvm.cbt.cbt_export_info
  - module: kvm.cbt.cbt_restore
  - module: kvm.cbt.cbt_repository_info
"""

EXAMPLES = r"""
- name: Serve the disks of the latest restore point of web1
  kvm.cbt.cbt_export:
    repository: /backup/kvm
    domain: web1
  register: web1

- name: Look at the partition table of the system disk
  ansible.builtin.command:
    argv: [qemu-img, info, "{{ web1.exports[0].uri }}"]
  changed_when: false

- name: End the export
  kvm.cbt.cbt_export:
    repository: /backup/kvm
    name: "{{ web1.name }}"
    state: absent

- name: Let QEMU write to the disks of yesterday, without keeping what it writes
  kvm.cbt.cbt_export:
    repository: s3://backup/kvm
    domain: db1
    until: "2026-11-21"
    name: db1-rehearsal
    socket_owner: libvirt-qemu
    writable: true
    cache_dir: /var/cache

- name: End the hold of an export of a host that is lost
  kvm.cbt.cbt_export:
    repository: /backup/kvm
    name: db1-rehearsal
    host: kvm2
    state: absent
"""

RETURN = r"""
name:
  description: Name of the export.
  returned: with O(state=present)
  type: str
  sample: web1-20261122T113005Z-1a2b3c4d
domain:
  description: Name of the domain at the time of the backup.
  returned: with O(state=present)
  type: str
  sample: web1
uuid:
  description: UUID of the domain.
  returned: with O(state=present)
  type: str
  sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
restore_point:
  description: Id of the restore point.
  returned: with O(state=present)
  type: str
  sample: 20261122T113005Z-1a2b3c4d
repository:
  description: Location of the repository.
  returned: with O(state=present)
  type: str
  sample: /backup/kvm
writable:
  description: Whether clients can write. Their writes are private to the export.
  returned: with O(state=present)
  type: bool
  sample: false
hold:
  description: Id of the hold that keeps the restore point. Null without one.
  returned: with O(state=present)
  type: str
  sample: 1f6c0a9d3e5b7c21
running:
  description: Whether the server runs.
  returned: with O(state=present)
  type: bool
  sample: true
exports:
  description: The disks.
  returned: with O(state=present)
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
removed:
  description: Names of the exports that were ended, or would be.
  returned: with O(state=absent)
  type: list
  elements: str
  sample: [web1-20261122T113005Z-1a2b3c4d]
"""

import grp
import os
import pwd

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _repository, _results, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.errors import CbtError
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.export.export import (
    EndRequest,
    ExportRequest,
    Folders,
    Selection,
    TcpAddress,
    UnixAddress,
    default_folder,
    end,
    export,
)


def _id(name: str | None, kind: str, default: int) -> int:
    """Return the id of a user or group."""
    if name is None:
        return default
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise CbtError(f"This host has no {kind} {name}. Check socket_owner and socket_group.") from error


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise CbtError(f"socket_mode is {text}; it must be an octal number such as '0660', in quotes.")
    return mode


def _address(module: _runtime.Module) -> UnixAddress | TcpAddress:
    params = module.params
    if params["address"] is not None:
        return TcpAddress(params["address"], params["port"], params["tls_certificates"] if params["tls"] else None)
    return UnixAddress(
        params["socket_dir"] or default_folder(),
        _id(params["socket_owner"], "user", os.geteuid()),
        _id(params["socket_group"], "group", os.getegid()),
        _mode(params["socket_mode"]),
    )


def _request(module: _runtime.Module) -> ExportRequest:
    params = module.params
    include = params["include_disks"]
    return ExportRequest(
        domain=params["domain"],
        restore_point=params["restore_point"],
        until=params["until"],
        name=params["name"],
        selection=Selection(None if include is None else tuple(include), tuple(params["exclude_disks"])),
        address=_address(module),
        folders=Folders(
            params["overlay_dir"] if params["writable"] else None,
            params["cache_dir"],
            params["cache_size"] if params["cache_dir"] else 0,
        ),
    )


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.REPOSITORY,
            **_options.DISKS,
            **_options.LOG,
            "domain": {"type": "str", "aliases": ["guest"]},  # the name is that of the export
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str"},
            "restore_point": {"type": "str", "default": "latest", "aliases": ["restore_points"]},
            "until": {"type": "str"},
            "host": {"type": "str"},
            "socket_dir": {"type": "path"},
            "socket_owner": {"type": "str"},
            "socket_group": {"type": "str"},
            "socket_mode": {"type": "str", "default": "0600"},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 10809},
            "tls": {"type": "bool", "default": True},
            "tls_certificates": {"type": "path", "default": "/etc/pki/qemu"},
            "writable": {"type": "bool", "default": False},
            "overlay_dir": {"type": "path", "default": "/var/tmp"},
            "cache_dir": {"type": "path"},
            "cache_size": {"type": "bytes", "default": "10G"},
        },
        mutually_exclusive=[("restore_point", "until"), ("address", "socket_dir"), _options.ONE_PASSPHRASE],
        required_if=[("state", "present", ("domain",))],
        supports_check_mode=True,
    )
    params = module.params
    with _runtime.reported(module):
        control = _runtime.interruptible(module)
        if params["state"] == "absent":
            ending = EndRequest(params["name"], params["domain"], params["restore_point"], params["host"])
            removed = end(_repository.existing_repository(module), ending, module.check_mode)
            module.exit_json(changed=bool(removed), removed=removed)
        location = _repository.repository_location(module)
        request = _request(module)
        result = export(_repository.repository_at(module, location), location, request, control, module.check_mode)
    for each in result.warnings:
        module.warn(each)
    module.exit_json(changed=result.changed, **_results.export_details(result.export))


if __name__ == "__main__":
    main()
