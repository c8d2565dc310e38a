# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Free space of file systems a backup depends on."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
import typing as t

from ..control import Control
from ..errors import CbtError, HypervisorError, Refused

_KEEP_SHARE = 0.05
_KEEP_MOST = 512 << 20
_PACE_OVER = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Usage:
    """Free and total bytes of the file system holding ``path``."""

    path: str
    free: int
    total: int

    @property
    def short(self) -> bool:
        """True if less is free than must be kept: 5 percent, but not more than 512 MiB."""
        return self.free < min(self.total * _KEEP_SHARE, _KEEP_MOST)


def usage_of(path: str) -> Usage:
    """The space of the file system holding ``path``."""
    usage = os.statvfs(path)
    return Usage(path, usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize)


@dataclasses.dataclass(frozen=True)
class WatchedDirectory:
    """A directory that must not run out of space; looked at every so many seconds. ``what`` and ``option`` are for the message.

    ``measure`` returns its usage, for one that is on another host.
    """

    path: str
    what: str
    option: str
    every: float
    measure: t.Callable[[str], Usage] = usage_of

    def require_room(self) -> None:
        """Raise Refused if there is too little space to begin with."""
        usage = self.measure(self.path)
        if usage.short:
            raise Refused(f"The backup was not started because {self._message(usage)}")

    def shortage(self, recent: collections.deque[int]) -> HypervisorError | None:
        """Why the backup has to end; None if there is space, or if the space cannot be measured. ``recent`` holds the last measurements.

        It has to end where little is left, and where no more is left than was just used up.
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
    """Watch free space during the block, and call ``end`` once a directory runs short; the block then raises the shortage.

    QEMU gives the guest an I/O error when the scratch file cannot grow (its default ``on-cbw-error`` is ``break-guest-write``), so
    the job must end before that. The work itself may be waiting for anything at that moment: hence threads, and hence ``end``.
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
                with contextlib.suppress(CbtError):  # the work, which fails now, tries again
                    end()
                return

    threads = [threading.Thread(target=watch, args=(directory,), daemon=True) for directory in directories]
    for thread in threads:
        thread.start()
    try:
        yield
    except CbtError as error:
        if shortages and error is not shortages[0]:
            raise shortages[0] from error
        raise
    finally:
        over.set()
        for thread in threads:
            thread.join()
