# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enabling and disabling changed block tracking of a domain."""

from __future__ import annotations

import dataclasses
import datetime
import typing as t

from ...errors import Refused
from ...hypervisor import backup_job, checkpoints
from ...hypervisor.checkpoints import Checkpoint, named, why_unsound
from ...hypervisor.connection import Domain, Session
from ...hypervisor.disks import Selection
from ...hypervisor.domain import DomainFacts, read_domain, require_files_here
from ...repository.format import manifests
from ...repository.repository import Repository

CREATE = "create"
REMOVE = "remove"


@dataclasses.dataclass(frozen=True)
class TrackingRequest:
    """Whether to record changes of a domain's disks.

    ``checkpoint`` is the name of the checkpoint to start from, or None for any name.
    """

    domain: str
    present: bool
    checkpoint: str | None = None
    selection: Selection = Selection()


@dataclasses.dataclass(frozen=True)
class Action:
    """One step: ``verb`` is create or remove."""

    verb: str
    checkpoint: str

    @property
    def text(self) -> str:
        """The step as a person reads it."""
        return f"{self.verb} checkpoint {self.checkpoint}"


@dataclasses.dataclass(frozen=True)
class DiskTracking:
    """Whether a disk's changes are recorded and, if not, why."""

    target: str
    tracked: bool
    reason: str | None


@dataclasses.dataclass(frozen=True)
class TrackingResult:
    """What was, or would be, done; ``checkpoint`` is the one that serves, None if there is none."""

    checkpoint: str | None
    disks: tuple[DiskTracking, ...]
    actions: tuple[Action, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


def wanted_disks(facts: DomainFacts, selection: Selection) -> tuple[DiskTracking, ...]:
    """Which disks of a domain are to be tracked. Raises Refused if the selection names an unknown disk."""
    selection.check([disk.target for disk in facts.disks], facts.name)
    reasons = {disk.target: selection.why_excluded(disk.target) or disk.why_untrackable for disk in facts.disks}
    return tuple(DiskTracking(target, reason is None, reason) for target, reason in reasons.items())


def plan_present(
    facts: DomainFacts,
    known: t.Sequence[Checkpoint],
    prefix: str,
    tracked: t.Collection[str],
    name: str | None,
    new_name: str,
) -> tuple[str | None, tuple[Action, ...]]:
    """The checkpoint that serves already, or the steps to have one. Pure.

    ``name`` asks for one of that name; otherwise the newest of ours that covers all ``tracked`` disks with sound bitmaps serves.
    """
    listed = {each.name for each in known}
    candidates = [name] if name is not None else list(reversed(named(prefix, listed, ())))
    targets = [disk for disk in facts.disks if disk.target in tracked]
    for candidate in candidates:
        if candidate in listed and all(why_unsound(disk, candidate) is None for disk in targets):
            return candidate, ()
    if name is None:
        return new_name, (Action(CREATE, new_name),)
    leftover = name in listed or any(disk.bitmap(name) is not None for disk in facts.disks)
    return name, (*((Action(REMOVE, name),) if leftover else ()), Action(CREATE, name))


def plan_absent(facts: DomainFacts, known: t.Sequence[Checkpoint], prefix: str, name: str | None) -> tuple[Action, ...]:
    """The steps that remove ours, or the one named. Pure."""
    present = named("" if name is not None else prefix, (each.name for each in known), facts.disks)
    return tuple(Action(REMOVE, each) for each in present if name is None or each == name)


def _apply(domain: Domain, facts: DomainFacts, tracked: t.Collection[str], actions: t.Sequence[Action]) -> None:
    for action in actions:
        if action.verb == REMOVE:
            checkpoints.remove(domain, action.checkpoint)
        else:
            checkpoints.create(domain, facts, action.checkpoint, tracked)


def _refuse_to_create(facts: DomainFacts, disks: t.Sequence[DiskTracking], actions: t.Sequence[Action]) -> None:
    if not any(disk.tracked for disk in disks):
        reasons = " ".join(disk.reason for disk in disks if disk.reason)
        raise Refused(f"Cannot track {facts.name}: none of its disks can be tracked. {reasons}".strip())
    if actions and not facts.active:
        raise Refused(
            f"Cannot create a checkpoint on {facts.name}: it is {facts.state}, and a checkpoint needs a running domain. Start it, paused if necessary."
        )


def set_tracking(
    session: Session,
    repository: Repository | None,
    request: TrackingRequest,
    check_only: bool = False,
) -> TrackingResult:
    """Have a baseline checkpoint of this repository on a domain, or have none. Does nothing where that is so already.

    ``repository`` may be None where there is none: with ``check_only``, or where tracking is to end. Raises a CbtError.
    """
    domain = session.domain(request.domain)
    with backup_job.domain_lock(domain.uuid, domain.name):
        facts = read_domain(domain)
        if not facts.active:
            require_files_here(facts, f"change the checkpoints of {request.domain} while it is shut off")
        known = checkpoints.list_checkpoints(domain)
        prefix = checkpoints.prefix(repository.id if repository is not None else "(new)")
        disks = wanted_disks(facts, request.selection)
        tracked = [disk.target for disk in disks if disk.tracked]
        serving: str | None = None
        if request.present:
            new_name = f"{prefix}{manifests.new_id(datetime.datetime.now(datetime.timezone.utc))}"
            serving, actions = plan_present(facts, known, prefix, tracked, request.checkpoint, new_name)
            _refuse_to_create(facts, disks, actions)
        else:
            actions = plan_absent(facts, known, prefix, request.checkpoint)
            disks = tuple(dataclasses.replace(disk, tracked=False) for disk in disks)
        if actions and facts.job is not None:
            raise Refused(
                f"Cannot change the checkpoints of {facts.name}: a {facts.job} job is running on it. Wait for it to end."
            )
        if not check_only:
            _apply(domain, facts, tracked, actions)
    before = named(prefix, (each.name for each in known), facts.disks)
    after = [each for each in before if Action(REMOVE, each) not in actions] + [
        each.checkpoint for each in actions if each.verb == CREATE
    ]
    return TrackingResult(serving, disks, actions, tuple(before), tuple(after))
