# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything the engine raises.

A message says what failed, on what object, why, and what to do.
"""

from __future__ import annotations


class CbtError(Exception):
    """Root of all errors a caller is meant to show to a person."""


class HypervisorError(CbtError):
    """libvirt or QEMU refused, or cannot be reached."""


class RepositoryError(CbtError):
    """The repository cannot be opened, read or written."""


class ObjectMissing(RepositoryError):
    """The repository holds no object of this name."""


class DamagedObject(RepositoryError):
    """An object of the repository is not what was written: bits changed, cut off or exchanged."""


class ObjectLocked(RepositoryError):
    """The store keeps an object for a time of its own and does not delete it before."""


class ReadOnly(RepositoryError):
    """The repository can be read, but this host or key is not allowed to write to it."""


class StorageFull(RepositoryError):
    """The store has no room for an object."""


class PassphraseRefused(RepositoryError):
    """The passphrase of a repository is missing, wrong, or given where none is needed."""


class Refused(CbtError):
    """What was asked for cannot be done safely; nothing was changed."""


class Held(Refused):
    """A restore point is not removed because it is held; ``reasons`` say by what."""

    def __init__(self, message: str, reasons: tuple[str, ...]) -> None:
        super().__init__(message)
        self.reasons = reasons


class ProgramError(CbtError):
    """An external program failed."""


class Interrupted(CbtError):
    """A signal asked the operation to end; what it had not finished was undone."""


def check_range(option: str, value: float | None, must: str, least: float, most: float = float("inf")) -> None:
    """Raise Refused if the value of an option is given and does not lie between two numbers; ``must`` says what it must be."""
    if value is not None and not least <= value <= most:
        raise Refused(f"{option} is {value}; it must be {must}.")


def size_text(size: int) -> str:
    """A size as a person reads it; exact, with the unit that divides it."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"
