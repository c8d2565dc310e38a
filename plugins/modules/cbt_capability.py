#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_capability
short_description: Enable incremental backup for domains on older libvirt versions
version_added: 0.1.0
description:
  - libvirt before 7.6 supports change tracking but disables it by default. This module adds the capability
    C(incremental-backup) to the definition of domains.
  - The change takes effect the next time a domain is started. Later libvirt versions do not need it.
    The role P(kvm.cbt.prepare#role) runs this module only where it is needed.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._libvirt
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  domains:
    description:
      - Names or UUIDs of domains. C(*) and C(?) are wildcards; no other character is special.
    type: list
    elements: str
    default: ["*"]
  state:
    description:
      - V(present) adds the capability. V(absent) removes it.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: kvm.cbt.cbt_checkpoint
"""

EXAMPLES = r"""
- name: Enable incremental backup for all domains
  kvm.cbt.cbt_capability:
"""

RETURN = r"""
domains:
  description: Domains that were changed, or would be changed.
  returned: always
  type: list
  elements: str
  sample: [web1]
missing:
  description: Members of O(domains) without wildcards that match no domain of this host.
  returned: always
  type: list
  elements: str
  sample: [db9]
"""

from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor, _options, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.tracking.capability import set_capability


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.LIBVIRT,
            **_options.LOG,
            "domains": {"type": "list", "elements": "str", "default": ["*"]},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    _runtime.require(module, "libvirt")
    on = module.params["state"] == "present"
    with _runtime.reported(module), _hypervisor.session(module) as session:
        changed, missing = set_capability(session, module.params["domains"], on, module.check_mode)
    before, after = ({"incremental_backup": dict.fromkeys(changed, state)} for state in (not on, on))
    module.exit_json(
        changed=bool(changed),
        domains=changed,
        missing=missing,
        diff={"before": before, "after": after},
    )


if __name__ == "__main__":
    main()
