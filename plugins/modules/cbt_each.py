#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_each
short_description: Run a module for many domains of a host, several in parallel
version_added: 0.1.0
description:
  - Runs a module of this collection once for each item of a list, up to O(parallel) at a time on each host. When one
    run ends, the next one starts.
  - A failed run does not stop the others. Each run prints one line when it ends.
  - If the host becomes unreachable, or the controller is lost, runs of modules that can take long end themselves after
    30 seconds and undo unfinished work. See
    L(Cancelling tasks,https://github.com/kvm-cbt/kvm.cbt/blob/main/docs/cancelling.md).
  - Roles such as P(kvm.cbt.backup#role) and P(kvm.cbt.reconcile#role) use this module.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
attributes:
  action:
    description: Has a part that runs on the controller.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: none
  check_mode:
    support: full
    details:
      - The module that is run is run in check mode.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Idempotent if the module that is run is idempotent.
options:
  module:
    description:
      - Fully qualified name of the module.
    type: str
    required: true
  options:
    description:
      - Options for all runs. Options set to C(null) are omitted.
    type: dict
    default: {}
  each:
    description:
      - The runs, in the order in which they start.
    type: list
    elements: dict
    required: true
    suboptions:
      label:
        description:
          - Name of the run in messages, such as the name of a domain.
        type: str
        required: true
      options:
        description:
          - Options for this run. They take precedence over the shared ones.
        type: dict
        default: {}
      running:
        description:
          - Whether the domain was active on this host when it was listed. With O(cluster), the run then fails if the
            domain is on another host at its turn. Otherwise, it is skipped.
        type: bool
        default: false
  cluster:
    description:
      - Hosts that may run the domains, in an order that is the same on all of them.
      - Immediately before the run for a domain that is not active on this host, these hosts are queried with
        M(kvm.cbt.cbt_domain_info), including those outside the play. The domain is skipped if it is active on another
        host. If it is shut off everywhere, the first of the hosts that have it processes it.
      - The modules get the hosts that did not report as O(kvm.cbt.cbt_backup#module:silent_hosts). A host does not
        report if it is unreachable, is not in the inventory, or its libvirt does not answer.
      - Use it only with modules that have the options O(kvm.cbt.cbt_backup#module:domain),
        O(kvm.cbt.cbt_backup#module:silent_hosts) and O(kvm.cbt.cbt_backup#module:answered_hosts).
    type: list
    elements: dict
    default: []
    suboptions:
      host:
        description:
          - Name of the host in the inventory.
        type: str
        required: true
      uri:
        description:
          - Libvirt URI on that host.
        type: str
        default: qemu:///system
      username:
        description:
          - Username for libvirt's SASL authentication on that host.
        type: str
      password:
        description:
          - Password for libvirt's SASL authentication on that host.
        type: str
      authfile:
        description:
          - Absolute path of a libvirt authentication file on that host.
        type: str
  parallel:
    description:
      - Number of runs in parallel on each host.
    type: int
    default: 1
  timeout:
    description:
      - Time after which a run is killed, such as V(90) (seconds), V(15m), V(24h) or V(7d).
    type: str
    default: 24h
  fail_on_error:
    description:
      - Whether the task fails after all runs have ended if one of them failed.
      - With V(false), failures are reported only in RV(outcomes).
    type: bool
    default: true
seealso:
  - module: kvm.cbt.cbt_domain_info
"""

EXAMPLES = r"""
- name: Back up two domains at a time
  kvm.cbt.cbt_each:
    module: kvm.cbt.cbt_backup
    parallel: 2
    options:
      repository: /backup/kvm
    each:
      - label: web1
        options: {domain: web1}
      - label: db1
        options: {domain: db1, quiesce: required}
      - label: mail
        options: {domain: mail}
"""

RETURN = r"""
outcomes:
  description:
    - Outcomes of the runs, in the order in which they ended.
    - Runs that did not start because the host was lost come last.
  returned: always
  type: list
  elements: dict
  contains:
    label:
      description: Name of the run.
      type: str
      sample: web1
    failed:
      description: Whether the run failed.
      type: bool
      sample: false
    changed:
      description: Whether the run changed anything.
      type: bool
      sample: true
    text:
      description: What the run did, or why it failed, in one line.
      type: str
      sample: "20261122T113005Z-1a2b3c4d: vda incremental; 63.0 MiB read, 30.0 MiB stored in 2 s"
    result:
      description: Return values of the module.
      type: dict
      sample: {"changed": true}
"""
