# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists the domains of a host, with their disks and checkpoints; changes nothing."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import HypervisorError
from ..hypervisor import checkpoints
from ..hypervisor.checkpoints import ANY_REPOSITORY, Checkpoint, why_unsound
from ..hypervisor.connection import Domain, Session
from ..hypervisor.domain import DomainFacts, definition_of, read_domain, state_of
from ..hypervisor.domain_xml.description import describe
from ..hypervisor.domain_xml.disks import Disk
from ..hypervisor.other_hosts import host_name
from ..patterns import matches, missing


@dataclasses.dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint and whether a backup can use it.

    ``valid`` is True if all its disks exist and their bitmaps are sound. ``dirty_bytes`` is None if QEMU reports no
    size, as for a domain that is shut off.
    """

    checkpoint: Checkpoint
    ours: bool
    valid: bool
    dirty_bytes: int | None


def _judge(checkpoint: Checkpoint, disks: t.Sequence[Disk], prefix: str | None) -> CheckpointFacts:
    covered = [disk for disk in disks if disk.target in checkpoint.disks]
    bitmaps = [disk.bitmap(checkpoint.name) for disk in covered]
    sizes = [bitmap.dirty_bytes for bitmap in bitmaps if bitmap is not None]
    return CheckpointFacts(
        checkpoint=checkpoint,
        ours=checkpoint.name.startswith(prefix) if prefix else ANY_REPOSITORY.fullmatch(checkpoint.name) is not None,
        valid=len(covered) == len(checkpoint.disks)
        and all(why_unsound(disk, checkpoint.name) is None for disk in covered),
        dirty_bytes=None if None in sizes else sum(size or 0 for size in sizes),
    )


def describe_domains(
    session: Session, name: str | None = None, repository_id: str | None = None
) -> list[tuple[DomainFacts, list[CheckpointFacts]]]:
    """Return all domains, or one, with their checkpoints.

    With ``repository_id``, only checkpoints of that repository count as ours.
    """
    domains = [session.domain(name)] if name is not None else session.domains()
    prefix = checkpoints.prefix(repository_id) if repository_id is not None else None
    described = []
    for domain in domains:
        try:
            facts = read_domain(domain)
            known = checkpoints.list_checkpoints(domain)
        except HypervisorError:
            if name is None and not domain.exists:
                continue  # it was undefined after it was listed
            raise
        described.append((facts, [_judge(each, facts.disks, prefix) for each in known]))
    return described


@dataclasses.dataclass(frozen=True)
class DomainListing:
    """Domains of a ``host`` by name, UUID and state, or with details; ``missing`` are names that match none."""

    host: str
    domains: tuple[t.Mapping[str, t.Any], ...]
    missing: tuple[str, ...]


_OF_A_DISK = ("target", "device", "type", "source", "format")


def _listed(domain: Domain, details: bool) -> dict[str, t.Any] | None:
    """Return what is listed of a domain; None if it was undefined after it was found."""
    state = state_of(domain)
    if state is None:
        return None
    short = {"name": domain.name, "uuid": domain.uuid, "state": state}
    if not details:
        return short
    definition = definition_of(domain)
    if definition is None:
        return None
    described = describe(definition.xml)
    return {
        **short,
        "title": described.title,
        "description": described.description,
        "metadata": described.metadata,
        "persistent": definition.persistent,
        "autostart": definition.autostart,
        "disks": [{key: getattr(disk, key) for key in _OF_A_DISK} for disk in described.disks],
    }


def list_domains(
    session: Session, patterns: t.Sequence[str], excluded: t.Sequence[str], details: bool = False
) -> DomainListing:
    """Return the domains whose name or UUID matches a pattern and no excluded one.

    Images are not read, and QEMU is not asked.
    """
    known = {domain: (domain.name, domain.uuid) for domain in session.domains()}
    found = {
        domain: _listed(domain, details)
        for domain, names in known.items()
        if matches(names, patterns) and not matches(names, excluded)
    }
    left = [names for domain, names in known.items() if found.get(domain, {}) is not None]
    listed = tuple(each for each in found.values() if each is not None)
    return DomainListing(host_name(session), listed, tuple(missing(patterns, left)))
