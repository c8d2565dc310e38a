# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backs up a domain: the request, the checks and the plan. run.py carries the plan out."""

from __future__ import annotations

import dataclasses
import time

from ...control import Control
from ...hypervisor import agent, backup_job, checkpoints
from ...hypervisor.connection import Session
from ...hypervisor.domain import read_domain, require_files_here
from ...hypervisor.domain_xml.disks import Selection
from ...hypervisor.other_hosts import OtherHosts, why_withheld
from ...repository.repository import Repository
from ...repository.sharing import leases
from ..point import new_point
from . import preparation, situation, transport
from .plan import BackupPlan, BackupPolicy, make_plan
from .result import BackupResult, result_of
from .run import BackupOptions, BackupRun, Decision


@dataclasses.dataclass(frozen=True)
class BackupRequest:
    """A request for one backup; module cbt_backup documents the options."""

    domain: str
    policy: BackupPolicy
    options: BackupOptions
    start_paused: bool = False
    abort_foreign_job: bool = False

    @property
    def opening(self) -> tuple[OtherHosts, Selection | None]:
        """Other hosts and the selection of disks, as in ``other_hosts.withheld``."""
        others = OtherHosts(confirmed=True) if self.policy.offline == "skip" else self.policy.others
        return others, None if self.start_paused else self.policy.selection


def _report(plan: BackupPlan, control: Control) -> None:
    """Report the decision for each disk, and the reason."""
    for disk in plan.disks:
        control.note("plan", disk=disk.target, mode=disk.mode, dirty_bytes=disk.dirty_bytes, reason=disk.reason)
    if plan.skipped is not None:
        control.note("skipped", reason=plan.skipped)


def backup(
    session: Session,
    repository: Repository | None,
    request: BackupRequest,
    control: Control | None = None,
    check_only: bool = False,
) -> BackupResult:
    """Back up a domain into a repository, or with ``check_only`` plan the backup.

    ``repository`` may be None with ``check_only``, if it does not exist yet. Raises a CbtError; then nothing is
    published, the domain has no job and no new checkpoint of ours, and the next run builds on the last good point.
    """
    started = time.monotonic()
    control = control or Control()
    domain = session.domain(request.domain)
    with (
        backup_job.domain_lock(domain.uuid, domain.name, session.wait),
        preparation.started(
            domain, request.start_paused, check_only, lambda: situation.seen(domain, repository, *request.opening)[0]
        ) as left,
    ):
        preparation.check_job(domain, read_domain(domain), request.abort_foreign_job)
        new_point.check(request.options)
        request.options.check()
        preparation.check_name(domain)
        servers = transport.servers(session, request.options.transport)
        if not check_only:
            left += preparation.clear(domain, request.options.scratch_dir, request.abort_foreign_job)
        with control.phase("planning", domain=domain.name):
            found = situation.gather(domain, repository, *request.opening)
            found = preparation.foreseen(domain, found) if check_only else found
        from_images = not (found.facts.active or (request.start_paused and why_withheld(found.facts) is None))
        if from_images and request.policy.offline != "skip":
            require_files_here(
                found.facts, f"back up {domain.name} while it is shut off, unless offline is start_paused"
            )
        plan = make_plan(found, request.policy)
        _report(plan, control)
        if from_images and plan.skipped is None:
            from ...hypervisor import offline_export  # loaded only for a domain that is shut off

            offline_export.require_images(found.facts, plan.targets)
        if request.options.quiesce == "required" and found.facts.active and plan.skipped is None:
            agent.require(found.facts)
        if plan.skipped is None:
            preparation.check_block_jobs(domain, found.facts, [disk.target for disk in plan.disks if disk.read])
        if check_only or repository is None or plan.skipped is not None:
            return result_of(found, plan, None, None, [*left, *plan.warnings])
        repository.sweep()
        for name, targets in plan.redefined.items():
            checkpoints.redefine(domain, found.facts, name, targets)
        with leases.held(repository, "backup") as lease:
            decision = Decision(domain, found, plan, request.options, servers)
            run = BackupRun(decision, lease, control)
            point = run.carry_out()
        result = result_of(found, run.plan, run, point, [*left, *run.plan.warnings, *run.warnings])
    return dataclasses.replace(result, duration=round(time.monotonic() - started, 3))
