# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backing up a domain."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t

from ...control import Control
from ...errors import Refused
from ...hypervisor import agent, backup_job, checkpoints, leftovers
from ...hypervisor.connection import Domain, Session, explained, libvirt
from ...hypervisor.domain import DomainFacts, read_domain, require_files_here
from ...repository.format import names
from ...repository.format.manifests import RestorePoint
from ...repository.repository import Repository
from ...repository.sharing import leases
from ..point import new_point
from ..point.disk_reader import ReadDisk
from ..point.portion import Statistics
from . import situation, transport
from .plan import BackupPlan, Situation, Wish, make_plan
from .run import BackupOptions, Decision, Run


@dataclasses.dataclass(frozen=True)
class BackupRequest:
    """What is asked of one backup; see the module's documentation for the meaning of each."""

    domain: str
    wish: Wish = Wish()
    options: BackupOptions = BackupOptions()
    start_paused: bool = False
    abort_foreign_job: bool = False


@dataclasses.dataclass(frozen=True)
class DiskResult:
    """What became of one disk; ``statistics`` is None where it was not read.

    ``unmarked`` are (offset, length) in bytes that an audit found changed although tracking did not mark them;
    ``healed_blocks`` damaged blocks of earlier points of which sound copies are stored now.
    """

    target: str
    mode: str
    reason: str
    virtual_size: int | None
    dirty_bytes: int | None
    statistics: Statistics | None = None
    unmarked: tuple[tuple[int, int], ...] = ()
    healed_blocks: int = 0


@dataclasses.dataclass(frozen=True)
class BackupResult:
    """The outcome of a backup; ``point`` is None for an estimate, and where it was ``skipped``. ``duration`` is in seconds."""

    point: RestorePoint | None
    disks: tuple[DiskResult, ...]
    warnings: tuple[str, ...]
    skipped: str | None = None
    duration: float = 0.0


def _ready(domain: Domain, facts: DomainFacts, abort_foreign: bool) -> None:
    """Raise Refused if a job of somebody else runs that is to be left alone."""
    if facts.job is None or leftovers.is_leftover(domain) or (abort_foreign and facts.job == "backup"):
        return
    raise Refused(
        f"Cannot back up {facts.name}: a {facts.job} job is running on it that is not ours. Wait for it to end, or end it with"
        f" virsh domjobabort {facts.name} or, if it is a backup job, with abort_foreign_job: true."
    )


def _nameable(domain: Domain) -> None:
    """Raise Refused if a restore point of the domain could not be read again for its name."""
    if not names.is_domain_name(domain.name):
        raise Refused(
            f"Cannot back up the domain {names.shown(domain.name)}: its name contains control characters. Rename it with virsh domrename."
        )


def _clear(domain: Domain, request: BackupRequest) -> list[str]:
    """End jobs and remove scratch files of runs that were killed, and a foreign job if that was asked for."""
    done = leftovers.clear(domain, request.options.scratch_dir)
    if request.abort_foreign_job and read_domain(domain).job == "backup":
        backup_job.end(domain)
        done.append(f"A backup job of another tool on {domain.name} was ended because abort_foreign_job is set.")
    return done


@contextlib.contextmanager
def _started(domain: Domain, wanted: bool) -> t.Iterator[None]:
    """Have a shut-off domain started, its processors halted, for the block."""
    if not wanted or domain.api.isActive():
        yield
        return
    with explained(f"start {domain.name} paused"):
        domain.api.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        yield
    finally:
        with explained(f"shut off {domain.name} again"):
            # Someone may have resumed it meanwhile: then it is theirs.
            if domain.api.isActive() and domain.api.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.api.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)


def _result(
    found: Situation, plan: BackupPlan, run: Run | None, point: RestorePoint | None, warnings: t.Iterable[str]
) -> BackupResult:
    read: t.Mapping[str, ReadDisk] = run.disks if run is not None else {}
    disks = []
    for each in plan.disks:
        done = read.get(each.target)
        size = next(disk.virtual_size for disk in found.facts.disks if disk.target == each.target)
        if done is None:
            disks.append(DiskResult(each.target, each.mode, each.reason, size, each.dirty_bytes))
        else:
            counts, healed = done.statistics, run.healed.blocks.get(each.target, 0) if run is not None else 0
            disks.append(
                DiskResult(
                    each.target,
                    each.mode,
                    each.reason,
                    done.size,
                    counts.dirty_bytes,
                    counts,
                    done.unmarked_bytes,
                    healed,
                )
            )
    return BackupResult(point, tuple(disks), tuple(warnings), plan.skipped)


def backup(
    session: Session,
    repository: Repository | None,
    request: BackupRequest,
    control: Control | None = None,
    check_only: bool = False,
) -> BackupResult:
    """Back up a domain into a repository, or with ``check_only`` tell what would be done.

    ``repository`` may be None with ``check_only``, if it would have to be created. Raises a CbtError; then nothing
    is published, the domain has no job and no new checkpoint of ours, and the next run builds on the last good point.
    """
    started = time.monotonic()
    domain = session.domain(request.domain)
    with backup_job.domain_lock(domain.uuid, domain.name), _started(domain, request.start_paused and not check_only):
        _ready(domain, read_domain(domain), request.abort_foreign_job)
        new_point.check(request.options)
        _nameable(domain)
        transport.servers(session, request.options.transport)  # here as well, so that check mode tells of it
        cleared = [] if check_only else _clear(domain, request)
        found = situation.gather(domain, repository)
        if not (found.facts.active or request.start_paused or request.wish.offline == "skip"):
            require_files_here(
                found.facts, f"back up {domain.name} while it is shut off, unless offline is start_paused"
            )
        plan = make_plan(found, request.wish)
        if request.options.quiesce == "required" and found.facts.active and plan.skipped is None:
            agent.require(found.facts)  # here as well, so that check mode tells of it
        if check_only or repository is None or plan.skipped is not None:
            return _result(found, plan, None, None, plan.warnings)
        repository.store.sweep()
        for name, targets in plan.redefined.items():
            checkpoints.redefine(domain, found.facts, name, targets)
        with leases.held(repository, "backup") as lease:
            decision = Decision(domain, found, plan, request.options)
            run = Run(decision, lease, control or Control())
            point = run.carry_out()
        result = _result(found, plan, run, point, [*cleared, *plan.warnings, *run.warnings])
    return dataclasses.replace(result, duration=round(time.monotonic() - started, 3))
