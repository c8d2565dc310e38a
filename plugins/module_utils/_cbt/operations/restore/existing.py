# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the domain that a restore would define."""

from __future__ import annotations

from ...hypervisor.connection import Session
from ...repository.repository import Repository
from ...repository.selecting import select_point
from .plan import RestoreRequest


def existing(session: Session, repository: Repository, request: RestoreRequest) -> str | None:
    """Return the name of the domain that the request would define; None if it does not exist.

    It must have the UUID of the original, unless a new one was asked for.
    """
    point = select_point(repository.points_with(request.domain), request.domain, request.restore_point, request.until)
    name = request.new_name or point.domain
    new = request.machine is not None and request.machine.new_uuid
    found = any(domain.name == name and (new or domain.uuid == point.uuid) for domain in session.domains())
    return name if found else None
