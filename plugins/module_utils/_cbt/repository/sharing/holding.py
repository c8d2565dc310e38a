# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes holds while retention, compaction and collectors may run.

The order of requests makes this safe: see "Holds" in docs/repository-format.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import socket
import typing as t

from ...errors import DamagedObject, ObjectMissing, ReadOnly, Refused, RepositoryError
from ...printable import printable
from ..format.manifests import RestorePoint
from ..repository import Repository
from . import holds, publishing
from .holds import Hold


class Attempt(t.NamedTuple):
    """The hold that was taken, or a warning that gives the reason why there is none."""

    hold: Hold | None
    warning: str | None


def hold(repository: Repository, point: RestorePoint, purpose: str) -> Hold:
    """Keep a restore point and all objects that it refers to until ``holds.release``.

    Serve from the ``point`` of the hold, because that is what it keeps. The hold is written first, and then the point
    is checked again. So this process and a run that removes or collects always see each other. Raises Refused if the
    point is gone by then, DamagedObject if it is not whole, ReadOnly if no hold can be written.
    """
    taken = Hold(secrets.token_hex(8), point.key, _line(socket.gethostname()), _line(purpose))
    with _withdrawing(repository, taken.name):
        try:
            kept = _kept(repository, taken)
            proven = dataclasses.replace(taken, since=repository.store.modified(taken.name), point=kept)
        except ObjectMissing as error:
            raise Refused(
                f"Restore point {point.id} of {point.domain} cannot be held: it was removed. Choose another one."
            ) from error
        repository.put_object(taken.name, holds.encode(proven, kept))
    return proven


@contextlib.contextmanager
def _withdrawing(repository: Repository, name: str) -> t.Iterator[None]:
    """Delete a hold if the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(RepositoryError):  # the error says more
            repository.discard(name)
        raise


def _kept(repository: Repository, taken: Hold) -> RestorePoint:
    """Write a hold of the point as it is now, and return the point once it will stay.

    Raises ObjectMissing if the point is gone, DamagedObject if it is not whole.
    """
    while True:
        point = repository.point(*taken.key)
        repository.put_object(taken.name, holds.encode(taken, point))
        # In this order: if the manifest still stands after the check for missing objects, nothing was lost before it.
        missing = publishing.missing(repository, point)
        if publishing.stands(repository, point):
            if missing:
                raise DamagedObject(
                    f"Restore point {point.id} of {point.domain} cannot be held: {_named(missing)}. Verify it, or"
                    " choose another one."
                )
            return point
        # Another run moved its blocks, or removed it.


def _named(missing: set[str]) -> str:
    first, others = min(missing), len(missing) - 1
    return (
        f"{first}{f' and {others} other objects' if others else ''} it needs is missing, damaged or about to be deleted"
    )


def _line(text: str) -> str:
    return printable(text)[: holds.LONGEST] or "unknown"


def hold_if_writable(repository: Repository, point: RestorePoint, purpose: str) -> Attempt:
    """Hold a restore point, or return a warning if the repository is read-only.

    Raises as ``hold`` does otherwise.
    """
    try:
        return Attempt(hold(repository, point, purpose), None)
    except ReadOnly as error:
        why = str(error).rstrip(".")
        return Attempt(
            None,
            f"Restore point {point.id} of {point.domain} is used without a hold, because the repository is read-only"
            f" here: {why}. If retention removes the point elsewhere, {_line(purpose)} fails. Pin the point, or give"
            " this host write access.",
        )
