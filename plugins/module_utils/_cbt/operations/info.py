# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What domains and repositories hold, told without changing anything."""

from __future__ import annotations

import dataclasses
import fnmatch
import typing as t

from ..errors import DamagedObject, HypervisorError, ObjectMissing
from ..hypervisor import checkpoints
from ..hypervisor.checkpoints import ANY_REPOSITORY, Checkpoint, flaw
from ..hypervisor.connection import Domain, Session
from ..hypervisor.disks import Disk
from ..hypervisor.domain import DomainFacts, read_domain, state_of
from ..repository.format import names
from ..repository.format.configuration import FORMAT
from ..repository.format.manifests import RestorePoint
from ..repository.records import damage, verified
from ..repository.records.damage import Damages
from ..repository.repository import Repository
from ..repository.selecting import of_domain


@dataclasses.dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint and its worth: ``valid`` if every bitmap of it is sound; ``dirty_bytes`` None where QEMU does not run."""

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
        valid=len(covered) == len(checkpoint.disks) and all(flaw(disk, checkpoint.name) is None for disk in covered),
        dirty_bytes=None if None in sizes else sum(size or 0 for size in sizes),
    )


def describe_domains(
    session: Session, name: str | None = None, repository: Repository | None = None
) -> list[tuple[DomainFacts, list[CheckpointFacts]]]:
    """All domains, or one, with their checkpoints; ``repository`` narrows which count as ours."""
    domains = [session.domain(name)] if name is not None else session.domains()
    prefix = checkpoints.prefix(repository.id) if repository is not None else None
    described = []
    for domain in domains:
        try:
            facts = read_domain(domain)
            known = checkpoints.list_checkpoints(domain)
        except HypervisorError:
            if name is None and not domain.exists:
                continue  # undefined since it was listed
            raise
        described.append((facts, [_judge(each, facts.disks, prefix) for each in known]))
    return described


@dataclasses.dataclass(frozen=True)
class DomainListing:
    """Domains by name, UUID and state, and the patterns without wildcards that name none."""

    domains: tuple[t.Mapping[str, str], ...]
    missing: tuple[str, ...]


def list_domains(session: Session, patterns: t.Sequence[str], excluded: t.Sequence[str]) -> DomainListing:
    """The domains whose name or UUID fits one of the patterns and none of the excluded ones. Their disks are not looked at."""
    known = session.domains()
    wanted = [domain for domain in known if _fits(domain, patterns) and not _fits(domain, excluded)]
    found = [
        {"name": domain.name, "uuid": domain.uuid, "state": state}
        for domain in wanted
        for state in [state_of(domain)]
        if state is not None
    ]
    missing = [
        each for each in patterns if not _WILD & set(each) and not any(_fits(domain, [each]) for domain in known)
    ]
    return DomainListing(tuple(found), tuple(missing))


_WILD = frozenset("*?[")


def _fits(domain: Domain, patterns: t.Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in (domain.name, domain.uuid))


@dataclasses.dataclass(frozen=True)
class RepositoryFacts:
    """A repository as a whole: bytes of all packs, and how many there are."""

    id: str
    format: int
    encrypted: bool
    bytes_stored: int
    packs: int


def describe_repository(repository: Repository) -> RepositoryFacts:
    """Size and identity of a repository. Raises RepositoryError if it cannot be listed."""
    stored = packs = 0
    for entry in repository.store.entries(names.PACKS):
        stored += entry.size
        packs += 1
    return RepositoryFacts(repository.id, FORMAT, bool(repository.slots), stored, packs)


def list_points(
    repository: Repository, domain: str | None = None, wanted: str | None = None
) -> tuple[list[RestorePoint], t.Mapping[str, str]]:
    """Restore points, oldest first, and damaged manifests with their cause. An unknown domain has none."""
    listing = repository.points_of()
    found = list(listing.points)
    if domain is not None:
        found = of_domain(found, domain) if any(domain in (point.domain, point.uuid) for point in found) else []
    if wanted == "latest":
        found = list({point.uuid: point for point in found}.values())
    elif wanted is not None:
        found = [point for point in found if point.id == wanted]
    return found, listing.damaged


class Health(t.NamedTuple):
    """How sound a restore point is, as far as is known: its last verification, and whether something of it is recorded as damaged."""

    verified: dict[str, t.Any] | None
    damaged: bool


def healths(repository: Repository, points: t.Iterable[RestorePoint]) -> list[Health]:
    """The health of each of the points. Maps are read only where the repository holds damage at all."""
    damages = damage.read_all(repository)
    found = []
    for point in points:
        last = verified.last(repository, point)
        hurt = (last is not None and last.own_damage is not None) or (
            bool(damages) and _names_damage(repository, point, damages)
        )
        shown = {key: getattr(last, key) for key in ("at", "level", "percent", "status")} if last is not None else None
        found.append(Health(shown, hurt))
    return found


def _names_damage(repository: Repository, point: RestorePoint, damages: Damages) -> bool:
    for disk in point.disks:
        try:
            extents = repository.read_map(point, disk.target)
        except (DamagedObject, ObjectMissing):
            return True
        if next(damage.damaged_runs(extents, damages), None) is not None:
            return True
    return False
