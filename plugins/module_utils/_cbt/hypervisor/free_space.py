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
class Space:
    """Free and total bytes of the file system holding ``path``."""

    path: str
    free: int
    total: int

    @property
    def short(self) -> bool:
        """True if less is free than must be kept: 5 percent, but not more than 512 MiB."""
        return self.free < min(self.total * _KEEP_SHARE, _KEEP_MOST)


def look(path: str) -> Space:
    """The space of the file system holding ``path``."""
    usage = os.statvfs(path)
    return Space(path, usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize)


@dataclasses.dataclass(frozen=True)
class Place:
    """A directory that must not run out of space; looked at every so many seconds. ``what`` and ``option`` are for the message.

    ``measure`` tells its space, for one that is on another host.
    """

    path: str
    what: str
    option: str
    every: float
    measure: t.Callable[[str], Space] = look

    def refuse(self) -> None:
        """Raise Refused if there is too little space to begin with."""
        space = self.measure(self.path)
        if space.short:
            raise Refused(f"The backup was not started because {self._shortage(space)}")

    def cause(self, looks: collections.deque[int]) -> HypervisorError | None:
        """Why the backup has to end; None if there is space, or if that cannot be told. ``looks`` keeps what was free of late.

        It has to end where little is left, and where no more is left than was just used up.
        """
        try:
            space = self.measure(self.path)
        except (OSError, HypervisorError):
            return None
        looks.append(space.free)
        if not space.short and space.free >= looks[0] - space.free:
            return None
        return HypervisorError(f"The backup was ended because {self._shortage(space)} The guest was not affected.")

    def _shortage(self, space: Space) -> str:
        return (
            f"{self.what} {self.path} runs out of space ({space.free >> 20} MiB of {space.total >> 20} MiB are free)."
            f" Free space there, or choose another place with {self.option}."
        )


@contextlib.contextmanager
def guarded(places: t.Sequence[Place], control: Control, end: t.Callable[[], None]) -> t.Iterator[None]:
    """Watch free space during the block, and call ``end`` once a place runs short; the block then raises the cause.

    QEMU gives the guest an I/O error when the scratch file cannot grow (its default ``on-cbw-error`` is ``break-guest-write``), so
    the job must end before that. The work itself may be waiting for anything at that moment: hence threads, and hence ``end``.
    """
    over = threading.Event()
    causes: list[HypervisorError] = []

    def watch(place: Place) -> None:
        looks: collections.deque[int] = collections.deque(maxlen=max(2, round(_PACE_OVER / place.every)))
        while not over.wait(place.every):
            cause = place.cause(looks)
            if cause is not None and not over.is_set():
                causes.append(cause)
                control.fail(cause)
                with contextlib.suppress(CbtError):  # the work, which fails now, tries again
                    end()
                return

    threads = [threading.Thread(target=watch, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    try:
        yield
    except CbtError as error:
        if causes and error is not causes[0]:
            raise causes[0] from error
        raise
    finally:
        over.set()
        for thread in threads:
            thread.join()
