#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_each
short_description: Run a module for many domains of a host, some at once
version_added: 0.1.0
description:
  - Starts a module of this collection for each item of a list, O(parallel) at a time on each host. As soon as one ends the next begins.
  - A run that fails does not stop the others. A line is shown for each that ends.
  - The runs go on by themselves. If the host cannot be reached any more, or the controller is stopped, those that were begun come to their end.
  - The roles P(kvm.cbt.backup#role), P(kvm.cbt.reconcile#role) and others are built on it.
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
      - The module runs in check mode.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - As far as the module that is run is so.
options:
  module:
    description:
      - Full name of the module.
    type: str
    required: true
  options:
    description:
      - Options that all runs share. One that is C(null) is left out.
    type: dict
    default: {}
  each:
    description:
      - The runs, begun in this order.
    type: list
    elements: dict
    required: true
    suboptions:
      label:
        description:
          - What the run is called, such as the name of a domain.
        type: str
        required: true
      options:
        description:
          - Options of this run, beside the shared ones and before them.
        type: dict
        default: {}
  parallel:
    description:
      - How many run at once on a host.
    type: int
    default: 1
  timeout:
    description:
      - Seconds after which a run is killed.
    type: int
    default: 86400
  fail_on_error:
    description:
      - Whether the task fails, after all runs, if one failed. Otherwise only RV(outcomes) tells.
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
  description: How the runs went, in the order in which they ended. Those that were not begun because the host was lost are the last.
  returned: always
  type: list
  elements: dict
  contains:
    label:
      description: What the run is called.
      type: str
      sample: web1
    failed:
      description: Whether it failed.
      type: bool
      sample: false
    changed:
      description: Whether it changed something.
      type: bool
      sample: true
    text:
      description: What it did, or why it failed, in one line.
      type: str
      sample: "20261122T113005Z-1a2b3c4d: vda incremental; 63.0 MiB read, 30.0 MiB stored in 2 s"
    result:
      description: What the module returned.
      type: dict
      sample: {"changed": true}
"""
