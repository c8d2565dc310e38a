# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches the free space of file systems that a backup depends on."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import shutil
import threading
import typing as t

from ..control import Control
from ..errors import CbtError, HypervisorError, Refused

_KEEP_SHARE = 0.05
_KEEP_MOST = 512 << 20
_PACE_OVER = 0.5  # seconds over which the consumption is measured


@dataclasses.dataclass(frozen=True)
class Usage:
    """Free and total bytes of a file system."""

    free: int
    total: int

    @property
    def short(self) -> bool:
        """Whether less is free than the reserve: 5 percent, but at most 512 MiB."""
        return self.free < min(self.total * _KEEP_SHARE, _KEEP_MOST)


def usage_of(path: str) -> Usage:
    """Return the space of the file system holding ``path``. Raises OSError."""
    usage = shutil.disk_usage(path)
    return Usage(usage.free, usage.total)


@dataclasses.dataclass(frozen=True)
class WatchedDirectory:
    """A directory that must not run out of space; checked each ``every`` seconds.

    ``what`` and ``option`` are for messages. ``measure`` returns the usage, also of a directory on another host.
    """

    path: str
    what: str
    option: str
    every: float
    measure: t.Callable[[str], Usage] = usage_of

    def require_room(self) -> None:
        """Raise Refused if there is too little space to start."""
        usage = self.measure(self.path)
        if usage.short:
            raise Refused(f"The backup was not started because {self._message(usage)}")

    def shortage(self, recent: collections.deque[int]) -> HypervisorError | None:
        """Return why the backup must end; None if there is space or no measurement.

        It must end if too little is free, or less than was used up since the oldest of the ``recent`` measurements
        (bytes).
        """
        try:
            usage = self.measure(self.path)
        except (OSError, HypervisorError):
            return None
        recent.append(usage.free)
        if not usage.short and usage.free >= recent[0] - usage.free:
            return None
        return HypervisorError(f"The backup was ended because {self._message(usage)} The guest was not affected.")

    def _message(self, usage: Usage) -> str:
        return (
            f"{self.what} {self.path} runs out of space ({usage.free >> 20} MiB of {usage.total >> 20} MiB are free)."
            f" Free space there, or choose another place with {self.option}."
        )


@contextlib.contextmanager
def guarded(directories: t.Sequence[WatchedDirectory], control: Control, end: t.Callable[[], None]) -> t.Iterator[None]:
    """Watch free space during the block; on a shortage, call ``end`` and raise it.

    QEMU gives the guest an I/O error when the scratch file cannot grow (its default ``on-cbw-error`` is
    ``break-guest-write``), so the job must end before that. The work may be blocked at that moment: therefore threads
    watch, and ``end`` ends the job.
    """
    over = threading.Event()
    shortages: list[HypervisorError] = []

    def watch(directory: WatchedDirectory) -> None:
        recent: collections.deque[int] = collections.deque(maxlen=max(2, round(_PACE_OVER / directory.every)))
        while not over.wait(directory.every):
            shortage = directory.shortage(recent)
            if shortage is not None and not over.is_set():
                shortages.append(shortage)
                control.fail(shortage)
                with contextlib.suppress(CbtError):  # the work, which fails now, ends the job again
                    end()
                return

    with concurrent.futures.ThreadPoolExecutor(len(directories)) as watching:
        for directory in directories:
            watching.submit(watch, directory)
        try:
            yield
        except CbtError as error:
            if shortages and error is not shortages[0]:
                raise shortages[0] from error
            raise
        finally:
            over.set()
