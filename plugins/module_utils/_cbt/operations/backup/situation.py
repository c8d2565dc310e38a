# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gathers the facts from which a backup is planned."""

from __future__ import annotations

import dataclasses

from ...errors import UnreadableObject
from ...grid import BLOCK_SIZE
from ...hypervisor import checkpoints
from ...hypervisor.connection import Domain
from ...hypervisor.domain import DomainFacts, read_domain, with_chains
from ...hypervisor.domain_xml.disks import Selection
from ...hypervisor.other_hosts import OtherHosts, host_name, withheld
from ...repository.format.manifests import RestorePoint
from ...repository.format.packs import PackRef
from ...repository.records import damage
from ...repository.records.damage import PackDamage
from ...repository.repository import Repository
from .plan import Situation, our_checkpoints


def seen(
    domain: Domain, repository: Repository | None, others: OtherHosts, selection: Selection | None = None
) -> tuple[DomainFacts, tuple[RestorePoint, ...]]:
    """Return a domain and its restore points. The arguments are those of ``gather``."""
    facts = read_domain(domain)
    points = repository.points_of(facts.uuid).points if repository is not None else ()
    last = points[-1].host if points else None
    return withheld(facts, others, host_name(domain.session), last, selection), points


def gather(
    domain: Domain, repository: Repository | None, others: OtherHosts, selection: Selection | None = None
) -> Situation:
    """Return the facts, read from libvirt, QEMU and the repository.

    ``repository`` is None if it does not exist yet. ``others`` and ``selection`` are as in ``other_hosts.withheld``.
    """
    facts, points = seen(domain, repository, others, selection)
    if repository is None:
        return Situation(facts, (), (), "cbt-")
    if not facts.active:
        facts = with_chains(facts)
    found = Situation(
        facts=facts,
        points=points,
        checkpoints=tuple(each.name for each in checkpoints.list_checkpoints(domain)),
        ours=checkpoints.prefix(repository.id),
        plain=not repository.slots,
    )
    return _with_damage(repository, found)


def _with_damage(repository: Repository, found: Situation) -> Situation:
    """Return the situation with the damage of points that may serve as a base.

    Those are the points with a checkpoint on the domain, and the newest point.
    """
    ours = set(our_checkpoints(found))
    candidates = [point for point in found.points if point.checkpoint in ours or point is found.points[-1]]
    damages: dict[bytes, PackDamage] = damage.read_all(repository)
    looked_at: set[PackRef] = set()
    damaged: dict[tuple[str, str], str] = {}
    lost: dict[tuple[str, str], int] = {}
    for point in candidates:
        for record in point.disks:
            try:
                extents = repository.read_map(point, record.target)
            except UnreadableObject as error:
                damaged[point.id, record.target] = str(error)
                continue
            damages.update(damage.unsound_packs(repository, set(extents.packs) - looked_at))
            looked_at.update(extents.packs)
            lost[point.id, record.target] = sum(run.count for run in damage.damaged_runs(extents, damages)) * BLOCK_SIZE
    return dataclasses.replace(
        found, damaged=damaged, damages=damages, lost={key: size for key, size in lost.items() if size}
    )
