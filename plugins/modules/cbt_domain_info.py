#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_domain_info
short_description: List the KVM domains of a host by name patterns
version_added: 0.1.0
description:
  - Lists domains with their state.
  - The module queries only libvirt and does not open disks, so a broken disk does not prevent the listing.
  - Apart from the state, everything is returned as the domain is defined. M(kvm.cbt.cbt_checkpoint_info) returns the
    disks that a running domain has.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.info_module
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt
  - kvm.cbt._log
options:
  domains:
    description:
      - Names or UUIDs of domains. C(*) and C(?) are wildcards; no other character is special.
    type: list
    elements: str
    default: ["*"]
  exclude_domains:
    description:
      - Names or UUIDs of domains to exclude. C(*) and C(?) are wildcards.
    type: list
    elements: str
    default: []
  details:
    description:
      - Whether to return more of each domain than its name, UUID and state.
      - The roles of this collection set V(false), because a result with details is about seven times as long. For 500
        domains with two disks each, it has 350 kB.
    type: bool
    default: true
seealso:
  - module: kvm.cbt.cbt_checkpoint_info
"""

EXAMPLES = r"""
- name: List all domains except test machines
  kvm.cbt.cbt_domain_info:
    exclude_domains: ["test-*"]
  register: listed

# Mark domains with: virsh metadata web1 https://example.com/backup --key backup --set '<plan name="gold"/>' --config
- name: Back up the domains that have metadata in a namespace of your own
  kvm.cbt.cbt_backup:
    domain: "{{ item.uuid }}"
    repository: /backup/kvm
    tags: {plan: "{{ item.metadata['https://example.com/backup'] | regex_search('name=\"(.*?)\"', '\\1') | first }}"}
  loop: "{{ listed.domains | selectattr('metadata', 'contains', 'https://example.com/backup') }}"
  loop_control:
    label: "{{ item.name }}"

- name: Show which domains do not start with the host
  ansible.builtin.debug:
    msg: "{{ listed.domains | rejectattr('autostart') | map(attribute='name') }}"
"""

RETURN = r"""
host:
  description: Name of the host, as restore points record it.
  returned: always
  type: str
  sample: kvm1
domains:
  description: Domains, sorted by name.
  returned: always
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
    title:
      description: Title. Empty for none.
      returned: with O(details)
      type: str
      sample: Shop front end
    description:
      description: Description. Empty for none.
      returned: with O(details)
      type: str
      sample: Serves the web shop.
    metadata:
      description:
        - XML text of each element in the domain's C(metadata), by its namespace.
        - The names of elements in this namespace have no prefix, as C(virsh metadata) prints them.
      returned: with O(details)
      type: dict
      sample:
        https://example.com/backup: '<plan name="gold" />'
    persistent:
      description: Whether libvirt keeps the domain when it is shut off.
      returned: with O(details)
      type: bool
      sample: true
    autostart:
      description: Whether the domain starts with the host.
      returned: with O(details)
      type: bool
      sample: true
    disks:
      description: Disks of the definition, in its order.
      returned: with O(details)
      type: list
      elements: dict
      contains:
        target:
          description: Disk target.
          type: str
          sample: vda
        device:
          description: V(disk), V(cdrom), V(floppy) or V(lun).
          type: str
          sample: disk
        type:
          description: Kind of source, such as V(file), V(block), V(volume) or V(network).
          type: str
          sample: file
        source:
          description: Path or name of the image. None if the disk has no medium.
          type: str
          sample: /var/lib/libvirt/images/web1.qcow2
        format:
          description: Format of the image.
          type: str
          sample: qcow2
missing:
  description: Members of O(domains) without wildcards that match no domain of this host.
  returned: always
  type: list
  elements: str
  sample: [db9]
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor, _options, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.domains import list_domains


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.LIBVIRT,
            **_options.LOG,
            "domains": {"type": "list", "elements": "str", "default": ["*"]},
            "exclude_domains": {"type": "list", "elements": "str", "default": []},
            "details": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    _runtime.require(module, "libvirt")
    with _runtime.reported(module), _hypervisor.session(module) as session:
        wanted = (module.params[name] for name in ("domains", "exclude_domains", "details"))
        listing = list_domains(session, *wanted)
    module.exit_json(changed=False, host=listing.host, domains=list(listing.domains), missing=list(listing.missing))


if __name__ == "__main__":
    main()
