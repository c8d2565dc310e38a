# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends heartbeats to the host of a task while its modules run, so that they end themselves if the controller is lost.

A heartbeat is one small command over a second use of the task's connection, from a thread of its own: the action may
wait for its module, or for other hosts.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import re
import threading
import typing as t

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.kvm.cbt.plugins.module_utils._cbt.printable import printable
from ansible_collections.kvm.cbt.plugins.module_utils._heartbeat import INTERVAL, VARIABLE

_CREATE = "mktemp /tmp/kvm-cbt-heartbeat.XXXXXXXXXX"
_LAST = 5  # seconds to wait for a heartbeat that is being sent
_CREATED = re.compile(r"^/tmp/kvm-cbt-heartbeat\.\w+$", re.MULTILINE)  # among what a login script may print


@contextlib.contextmanager
def heartbeats(action: ActionBase) -> t.Iterator[None]:
    """Send heartbeats to the modules that the action starts in the block."""
    second = _second(action)
    created = second._low_level_execute_command(_CREATE, sudoable=False)
    found = _CREATED.search(created["stdout"])
    if found is None:
        action._display.warning(
            f"Cannot create a heartbeat file in /tmp: {printable(created['stderr'].strip())}."
            " The task will not end itself if the controller is lost."
        )
        yield
        return
    path, over = found[0], threading.Event()
    sender = threading.Thread(target=_send, args=(second, path, over), name="heartbeats", daemon=True)
    environment = action._task.environment
    action._task.environment = [*(environment or []), {VARIABLE: path}]
    sender.start()
    try:
        yield
    finally:
        over.set()
        action._task.environment = environment
        sender.join(_LAST)
    # Not after an error, such as a timeout of the task: the module may still run, and removes the file itself.
    with contextlib.suppress(AnsibleError):
        action._low_level_execute_command(f"rm -f {path}", sudoable=False)


def _second(action: ActionBase) -> ActionBase:
    """Return the action with a copy of its connection, which the thread uses as the login user."""
    second = copy.copy(action)
    second._connection = copy.copy(action._connection)
    second._connection.become = None  # it has the state of one command
    return second


def _send(action: ActionBase, path: str, over: threading.Event) -> None:
    """Send heartbeats until ``over`` is set. End this process if ansible-playbook was killed without it."""
    parent = multiprocessing.parent_process()
    expected = os.getppid() if parent is None else parent.pid
    while not over.wait(INTERVAL):
        if os.getppid() != expected:
            os._exit(1)
        with contextlib.suppress(Exception):  # a thread that ended would end the module, too
            action._low_level_execute_command(f"touch -c {path}", sudoable=False)
