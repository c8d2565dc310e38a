# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds and starts the domain that a restore would define."""

from __future__ import annotations

from ...hypervisor.connection import Domain, Session, explained
from ...repository.repository import Repository
from ...repository.selecting import select_point
from .isolation import check_isolated, ensure_isolated
from .plan import MachineOptions, RestoreRequest


def existing(session: Session, repository: Repository, request: RestoreRequest) -> Domain | None:
    """Return the domain that the request would define; None if it does not exist.

    It must have the UUID of the original, unless a new one was asked for.
    """
    point = select_point(repository.points_with(request.domain), request.domain, request.restore_point, request.until)
    name = request.new_name or point.domain
    new = request.machine is not None and request.machine.new_uuid
    found = (domain for domain in session.domains() if domain.name == name and (new or domain.uuid == point.uuid))
    return next(found, None)


def begin(domain: Domain, options: MachineOptions, check_only: bool) -> bool:
    """Start an existing domain if requested and shut off. Return whether it was, or with ``check_only`` would be."""
    if options.isolated_network is not None:
        (check_isolated if check_only else ensure_isolated)(domain.session, options.isolated_network)
    with explained(f"start {domain.name}"):
        if not options.start or domain.api.isActive():
            return False
        if not check_only:
            domain.api.create()
    return True
