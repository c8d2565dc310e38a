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
seealso:
  - module: kvm.cbt.cbt_checkpoint_info
"""

EXAMPLES = r"""
- name: List all domains except test machines
  kvm.cbt.cbt_domain_info:
    exclude_domains: ["test-*"]
  register: listed
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
        },
        supports_check_mode=True,
    )
    _runtime.require(module, "libvirt")
    with _runtime.reported(module), _hypervisor.session(module) as session:
        listing = list_domains(session, module.params["domains"], module.params["exclude_domains"])
    module.exit_json(changed=False, host=listing.host, domains=list(listing.domains), missing=list(listing.missing))


if __name__ == "__main__":
    main()
