# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes of the modules."""

from __future__ import annotations


class ModuleDocFragment:
    """Attributes that modules declare."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and predict what the run would do without changing anything.
  diff_mode:
    description: Returns what changed, or would change, when in diff mode.
  idempotent:
    description: When run twice in a row with the same arguments, the second run reports no change.
  platform:
    description: Platforms the module runs on.
    platforms: posix
    support: full
"""

    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module changes no domain and no repository.
  diff_mode:
    support: N/A
    details:
      - This module changes no domain and no repository.
  idempotent:
    support: full
    details:
      - This module changes no domain and no repository.
"""

    # Modules that ``meta/runtime.yml`` gives the action plugin of cbt_backup
    HEARTBEATS = r"""
options: {}
attributes:
  action:
    description: Has a part that runs on the controller.
    support: full
    details:
      - While the module runs, the controller sends it a heartbeat every 5 seconds. If none arrives for 30 seconds, the
        module ends itself and undoes unfinished work, as after SIGTERM. See
        L(Cancelling tasks,https://github.com/kvm-cbt/kvm.cbt/blob/main/docs/cancelling.md).
  async:
    description: Supports being used with the C(async) keyword.
    support: full
    details:
      - With C(async), the module gets no heartbeats and continues to its end if the controller is lost.
"""

    ACTIONGROUP = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/kvm.cbt.cbt) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - kvm.cbt.cbt
"""
