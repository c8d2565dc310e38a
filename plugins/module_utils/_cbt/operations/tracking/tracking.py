# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enables and disables changed block tracking of a domain."""

from __future__ import annotations

import dataclasses
import datetime
import typing as t

from ...errors import Refused
from ...hypervisor import backup_job, checkpoints
from ...hypervisor.checkpoints import named, why_unsound
from ...hypervisor.connection import Domain, Session
from ...hypervisor.domain import DomainFacts, read_domain, require_files_here
from ...hypervisor.domain_xml.disks import Selection
from ...hypervisor.other_hosts import OtherHosts, why_withheld
from ...repository.format import manifests
from ...repository.repository import Repository
from ..backup import situation

CREATE = "create"
REMOVE = "remove"


@dataclasses.dataclass(frozen=True)
class TrackingRequest:
    """Whether to record changes of a domain's disks.

    ``checkpoint`` is the name of one checkpoint; None for any of this repository.
    """

    domain: str
    present: bool
    checkpoint: str | None = None
    selection: Selection = Selection()
    others: OtherHosts = OtherHosts()


@dataclasses.dataclass(frozen=True)
class Action:
    """One step: ``verb`` is create or remove."""

    verb: str
    checkpoint: str

    @property
    def text(self) -> str:
        """A description of the step for the user."""
        return f"{self.verb} checkpoint {self.checkpoint}"


@dataclasses.dataclass(frozen=True)
class DiskTracking:
    """Whether a disk's changes are recorded, and if not, why."""

    target: str
    tracked: bool
    reason: str | None


@dataclasses.dataclass(frozen=True)
class TrackingResult:
    """The steps that were, or would be, done.

    ``checkpoint`` is the one that records changes, None if there is none. ``before`` and ``after`` are the checkpoints
    of this repository.
    """

    checkpoint: str | None
    disks: tuple[DiskTracking, ...]
    actions: tuple[Action, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


def wanted_disks(facts: DomainFacts, selection: Selection) -> tuple[DiskTracking, ...]:
    """Return whether each disk of a domain will be tracked, and if not, why.

    Raises Refused if the selection names an unknown disk.
    """
    selection.check([disk.target for disk in facts.disks], facts.name)
    reasons = {disk.target: selection.why_excluded(disk.target) or disk.why_untrackable for disk in facts.disks}
    return tuple(DiskTracking(target, reason is None, reason) for target, reason in reasons.items())


def plan_present(
    facts: DomainFacts,
    listed: t.Collection[str],
    prefix: str,
    tracked: t.Collection[str],
    name: str | None,
    new_name: str,
) -> tuple[str | None, tuple[Action, ...]]:
    """Return the checkpoint that records changes, and the steps to create it.

    With ``name``, it is that one. Otherwise it is the newest of ours with sound bitmaps in all ``tracked`` disks, or
    ``new_name``. There are no steps if the checkpoint exists and is sound. Pure.
    """
    candidates = [name] if name is not None else list(reversed(named(prefix, listed, ())))
    targets = [disk for disk in facts.disks if disk.target in tracked]
    for candidate in candidates:
        if candidate in listed and all(why_unsound(disk, candidate) is None for disk in targets):
            return candidate, ()
    if name is None:
        return new_name, (Action(CREATE, new_name),)
    leftover = name in listed or any(disk.bitmap(name) is not None for disk in facts.disks)
    return name, (*((Action(REMOVE, name),) if leftover else ()), Action(CREATE, name))


def plan_absent(facts: DomainFacts, listed: t.Collection[str], prefix: str, name: str | None) -> tuple[Action, ...]:
    """Return the steps that remove our checkpoints, or only ``name``. Pure."""
    present = named("" if name is not None else prefix, listed, facts.disks)
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
            f"Cannot create a checkpoint on {facts.name}: it is {facts.state}, and a checkpoint needs a running domain."
            " Start it, paused if necessary."
        )


def set_tracking(
    session: Session,
    repository: Repository | None,
    request: TrackingRequest,
    check_only: bool = False,
) -> TrackingResult:
    """Create a baseline checkpoint of a domain, or remove those of this repository.

    With a checkpoint in ``request``, creates or removes only that one. Does nothing if that is done already.
    ``repository`` may be None with ``check_only``, or to end tracking. Raises a CbtError.
    """
    domain = session.domain(request.domain)
    with backup_job.domain_lock(domain.uuid, domain.name, session.wait):
        facts = read_domain(domain)
        if not facts.active:
            require_files_here(facts, f"change the checkpoints of {request.domain} while it is shut off")
        listed = {each.name for each in checkpoints.list_checkpoints(domain)}
        prefix = checkpoints.prefix(repository.id if repository is not None else "(new)")
        disks = wanted_disks(facts, request.selection)
        tracked = [disk.target for disk in disks if disk.tracked]
        serving: str | None = None
        if request.present:
            new_name = f"{prefix}{manifests.new_id(datetime.datetime.now(datetime.timezone.utc))}"
            serving, actions = plan_present(facts, listed, prefix, tracked, request.checkpoint, new_name)
            _refuse_to_create(facts, disks, actions)
        else:
            actions = plan_absent(facts, listed, prefix, request.checkpoint)
            disks = tuple(dataclasses.replace(disk, tracked=False) for disk in disks)
            skipped = why_withheld(situation.seen(domain, repository, request.others)[0]) if actions else None
            if skipped is not None:
                raise Refused(f"Cannot change the checkpoints of {facts.name}: {skipped}")
        if actions and facts.job is not None:
            raise Refused(
                f"Cannot change the checkpoints of {facts.name}: {facts.job_text} is running on it. Wait for it to end."
            )
        if not check_only:
            _apply(domain, facts, tracked, actions)
    before = named(prefix, listed, facts.disks)
    after = [each for each in before if Action(REMOVE, each) not in actions] + [
        each.checkpoint for each in actions if each.verb == CREATE
    ]
    return TrackingResult(serving, disks, actions, tuple(before), tuple(after))
