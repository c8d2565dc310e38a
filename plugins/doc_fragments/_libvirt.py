# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of modules that talk to libvirt."""

from __future__ import annotations


class ModuleDocFragment:
    """Must be kept in sync with C(plugins/module_utils/_options.py)."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - Libvirt connection URI.
      - It may name another host than the one that runs the task. An operation that needs files of the other host is
        refused.
      - If the option is not set in the task, the environment variable E(LIBVIRT_DEFAULT_URI) of the host of the task is
        used before the default.
    type: str
    default: qemu:///system
  username:
    description:
      - Username for libvirt's SASL authentication.
    type: str
  password:
    description:
      - Password for libvirt's SASL authentication.
    type: str
  authfile:
    description:
      - Path of a libvirt authentication file on the hypervisor.
    type: path
requirements:
  - python >= 3.9
  - libvirt-python (C(python3-libvirt) of the distribution)
"""

    LOCK = r"""
options:
  lock_timeout:
    description:
      - Time to wait if another run is working on the same domain or image, such as V(90) (seconds), V(15m), V(24h) or
        V(7d). By default, the task fails at once.
    type: str
    default: "0"
"""

    DISKS = r"""
options:
  include_disks:
    description:
      - Targets of the disks to include, such as V(vda). By default, all disks that can be processed.
    type: list
    elements: str
  exclude_disks:
    description:
      - Targets of the disks to exclude.
    type: list
    elements: str
    default: []
"""

    OTHER_HOSTS = r"""
options:
  offline_confirmed:
    description:
      - Whether you made sure that a domain that is shut off on this host runs on no other host.
      - QEMU's locks on image files protect a domain that runs on another host. There are no such locks on block
        devices, logical volumes, iSCSI and network disks, and on file systems that are mounted with locks of one host
        only (C(nolock), C(local_lock)). If such a disk is read or changed while another host has it open, the restore
        point is useless, or data of the guest is lost.
    type: bool
    default: false
  silent_hosts:
    description:
      - Hosts that may run the domain and did not report whether they do. If there are any, and the domain is shut off,
        disks without locks that reach other hosts are left out with a warning. M(kvm.cbt.cbt_checkpoint) then removes
        no bitmap of the domain.
      - The roles set it, see C(cbt_cluster) of P(kvm.cbt.backup#role).
    type: list
    elements: str
    default: []
  answered_hosts:
    description:
      - Hosts that reported that they do not run the domain, by the name in RV(kvm.cbt.cbt_domain_info#module:host).
      - The roles set it.
    type: list
    elements: str
    default: []
"""

    DOMAIN = r"""
options:
  domain:
    description:
      - Name or UUID of the domain. The UUID is needed if a repository holds several machines that had the same name.
    type: str
    required: true
    aliases: [name, guest]
"""

    ANY_DOMAIN = r"""
options:
  domain:
    description:
      - Name or UUID of a domain. By default, all domains.
    type: str
    aliases: [name, guest]
"""
