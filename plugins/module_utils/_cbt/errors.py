# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors that the engine raises.

A message says what failed, on what object, why, and what to do.
"""

from __future__ import annotations


class CbtError(Exception):
    """Root of all errors whose message callers show to a user."""


class HypervisorError(CbtError):
    """libvirt or QEMU refused, or cannot be reached."""


class RepositoryError(CbtError):
    """The repository cannot be opened, read or written."""


class UnreadableObject(RepositoryError):
    """An object cannot be read: it is missing or damaged."""


class ObjectMissing(UnreadableObject):
    """The repository holds no object of this name."""


class DamagedObject(UnreadableObject):
    """An object differs from what was written: it was changed, cut off or exchanged."""


class ObjectLocked(RepositoryError):
    """The store retains an object, and does not delete it before the retention ends."""


class ReadOnly(RepositoryError):
    """The repository can be read, but this host or key is not allowed to write to it."""


class StorageFull(RepositoryError):
    """The store has no room for an object."""


class PassphraseRefused(RepositoryError):
    """The passphrase of a repository is missing, wrong, or given but not needed."""


class Refused(CbtError):
    """The request cannot be carried out safely; nothing was changed."""


class Held(Refused):
    """A restore point is not removed because it is held. ``reasons`` name the holders."""

    def __init__(self, message: str, reasons: tuple[str, ...]) -> None:
        super().__init__(message)
        self.reasons = reasons


class ProgramError(CbtError):
    """An external program failed."""


class Interrupted(CbtError):
    """A signal asked the operation to end. The message says what remains."""


def check_range(option: str, value: float | None, must: str, least: float, most: float = float("inf")) -> None:
    """Raise Refused if an option has a value that is not between two numbers. ``must`` names the range."""
    if value is not None and not least <= value <= most:
        raise Refused(f"{option} is {value}; it must be {must}.")


def size_text(size: int) -> str:
    """Return a size as text: exact, in the largest unit that divides it."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"
