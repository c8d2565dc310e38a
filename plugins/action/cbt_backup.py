# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a module that can take long, so that it ends itself if the controller is lost.

``meta/runtime.yml`` names the modules that use it.
"""

from __future__ import annotations

import typing as t

from ansible.plugins.action.normal import ActionModule as NormalAction

from ansible_collections.kvm.cbt.plugins.plugin_utils._heartbeats import heartbeats

Result = dict[str, t.Any]


class ActionModule(NormalAction):  # type: ignore[misc]
    """Runs the module of the task as Ansible does, and sends it heartbeats.

    With ``async``, the module is meant to outlive the controller. In check mode, it has nothing to undo.
    """

    def run(self, tmp: str | None = None, task_vars: Result | None = None) -> Result:
        """Run the module to its end and return its result."""
        if self._task.async_val or self._task.check_mode:
            return t.cast(Result, super().run(tmp, task_vars))
        with heartbeats(self):
            return t.cast(Result, super().run(tmp, task_vars))
