# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends a module whose controller is lost.

While the module runs, its action plugin touches a file on the module's host. The module is asked to stop once the file
has not changed for ``SILENCE`` seconds. A module without such a file, as with ``async``, is not watched.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import typing as t

VARIABLE = "_KVM_CBT_HEARTBEAT"  # environment variable with the path of the file
INTERVAL = 5  # seconds between two heartbeats
SILENCE = 30  # seconds without a heartbeat after which the controller counts as lost

Lost = t.Callable[[str], None]


def watch(lost: Lost, warn: t.Callable[[str], None]) -> None:
    """Call ``lost`` with a reason once the controller is lost. Call ``warn`` if that cannot be detected."""
    path = os.environ.pop(VARIABLE, None)
    if path is None:
        return
    before = _times(path)
    if before is None:
        warn(f"Cannot read the heartbeat file {path}. The task will not end itself if the controller is lost.")
        return
    threading.Thread(target=_watch, args=(path, before, lost), name="heartbeat", daemon=True).start()


def _watch(path: str, before: tuple[int, int], lost: Lost) -> None:
    """Count seconds of observation, so that neither a changed clock nor a suspended host ends a run."""
    silent = 0
    while silent < SILENCE:
        time.sleep(1)
        now = _times(path)
        if now is None or now == before:
            silent += 1
        else:
            silent, before = 0, now
    with contextlib.suppress(OSError):
        os.unlink(path)
    lost(f"the loss of the controller: no heartbeat for {SILENCE} s")


def _times(path: str) -> tuple[int, int] | None:
    """Return what every heartbeat changes; None if the file cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns
