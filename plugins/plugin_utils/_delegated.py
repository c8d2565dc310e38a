# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a module on another host from within an action plugin, as ``delegate_to`` does."""

from __future__ import annotations

import contextlib
import inspect
import signal
import time
import typing as t

from ansible.executor.task_executor import TaskExecutor
from ansible.plugins.action import ActionBase

Result = dict[str, t.Any]

# What a copy of the action's task must not inherit: it runs a module once, and the module alone decides about success.
_ONCE: Result = {
    "async_val": 0,
    "register": None,
    "loop": None,
    "loop_with": None,
    "until": [],
    "when": [],
    "failed_when": [],
    "changed_when": [],
    "vars": {},
}


def run_on(host: str, action: ActionBase, module: str, arguments: Result, limits: tuple[Result, int]) -> Result:
    """Run a module on a host and return its result. A host that is lost or takes too long gives a failed result.

    ``limits`` are the variables of the action's task, and the number of seconds.
    """
    task_vars, seconds = limits
    hostvars = task_vars["hostvars"]
    if host not in hostvars:
        return {"failed": True, "msg": f"{host} is not in the inventory"}
    task = action._task.copy()
    wanted = {"action": module, "args": arguments, "delegate_to": host, "timeout": seconds}
    for name, value in {**_ONCE, **wanted}.items():
        setattr(task, name, value)
    given = {
        "host": hostvars._inventory.get_host(task_vars["inventory_hostname"]),
        "task": task,
        "job_vars": dict(task_vars),
        "play_context": action._play_context.copy(),
        "new_stdin": None,  # up to ansible-core 2.18
        "loader": action._loader,
        "shared_loader_obj": action._shared_loader_obj,
        "final_q": None,  # for loops, retries and async, of which there are none
        "variable_manager": hostvars._variable_manager,
    }
    executor = TaskExecutor(**{name: given[name] for name in inspect.signature(TaskExecutor).parameters})
    with _without_alarm():
        return t.cast(Result, executor.run())


@contextlib.contextmanager
def _without_alarm() -> t.Iterator[None]:
    """Suspend the time limit of the action's own task, for which Ansible uses the same alarm."""
    left, began = signal.alarm(0), time.monotonic()
    handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        if left:
            signal.alarm(max(1, left - int(time.monotonic() - began)))
