# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reconciles libvirt's checkpoints, bitmaps in images and restore points."""

from __future__ import annotations

import dataclasses
import typing as t

from ...errors import Refused
from ...hypervisor import backup_job, checkpoints, leftovers
from ...hypervisor.checkpoints import ANY_REPOSITORY, named, why_unsound
from ...hypervisor.connection import Domain, Session
from ...hypervisor.domain import require_files_here
from ...hypervisor.domain_xml.disks import Disk
from ...hypervisor.other_hosts import OtherHosts, why_withheld
from ...repository.repository import Repository
from ..backup import situation
from ..backup.plan import Situation, our_checkpoints, usable_disks

REDEFINE = "redefine"
REMOVE = "remove"
SHUT_OFF = "shut off"


@dataclasses.dataclass(frozen=True)
class Step:
    """One step: ``verb`` is redefine or remove a ``checkpoint``, or shut the domain off, which comes first.

    ``disks`` are the targets whose bitmaps a redefined checkpoint uses.
    """

    verb: str
    checkpoint: str
    reason: str
    disks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """A description of the step for the user."""
        what = "the domain" if self.verb == SHUT_OFF else f"checkpoint {self.checkpoint}"
        return f"{self.verb} {what}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The steps that are needed, or were done.

    ``serving`` is the checkpoint on which the next backup builds. ``foreign`` are checkpoints and bitmaps that do not
    belong to this collection. ``known`` are the checkpoints in libvirt before the steps, and ``held`` those to which
    bitmaps in images belong. ``skipped`` is why nothing was done, or None.
    """

    serving: str | None
    steps: tuple[Step, ...]
    foreign: tuple[str, ...]
    known: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    skipped: str | None = None

    def state(self, after: bool) -> dict[str, list[str]]:
        """Return the checkpoints in libvirt, and those to which bitmaps belong, before or ``after`` the steps."""
        done = self.steps if after else ()
        new = {step.checkpoint for step in done if step.verb == REDEFINE}
        gone = {step.checkpoint for step in done if step.verb == REMOVE}
        return {"checkpoints": sorted({*self.known, *new} - gone), "bitmaps": sorted({*self.held} - gone)}


def _sound_disks(disks: t.Iterable[Disk], name: str) -> tuple[str, ...]:
    return tuple(disk.target for disk in disks if why_unsound(disk, name) is None)


def _serving(found: Situation, ours: t.Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the checkpoint to keep, and the disks whose changes it records.

    This is the checkpoint of the newest restore point that the next backup can build on. Without one, it is our newest
    other checkpoint with sound bitmaps, such as a baseline from before the first backup.
    """
    for point in reversed(found.points):
        usable = usable_disks(point, found)
        if usable:
            return point.checkpoint, usable
    named = {point.checkpoint for point in found.points}
    for name in reversed([each for each in ours if each not in named]):
        sound = _sound_disks(found.facts.disks, name)
        if sound:
            return name, sound
    return None, ()


def _why_gone(name: str, found: Situation) -> str:
    point = next((each for each in reversed(found.points) if each.checkpoint == name), None)
    if point is None:
        return "no restore point of this repository names it"
    if not _sound_disks(found.facts.disks, name):
        return f"none of its bitmaps records the changes since restore point {point.id}"
    return f"restore point {point.id} is not the one the next backup builds on"


def plan_agreement(found: Situation, remove_foreign: bool) -> Agreement:
    """Plan the steps that keep one checkpoint of this repository and remove the others.

    With ``remove_foreign``, also remove those that do not belong to this collection. Pure.
    """
    ours = our_checkpoints(found)
    serving, disks = _serving(found, ours)
    steps = []
    if serving is not None and serving not in found.checkpoints:
        steps.append(
            Step(REDEFINE, serving, f"its bitmaps are in {', '.join(disks)}, but libvirt does not know it", disks)
        )
    steps += [Step(REMOVE, name, _why_gone(name, found)) for name in ours if name != serving]
    others = named("", found.checkpoints, found.facts.disks)
    foreign = tuple(name for name in others if name not in ours and ANY_REPOSITORY.fullmatch(name) is None)
    if remove_foreign:
        steps += [
            Step(REMOVE, name, "it does not belong to this collection, and foreign is set to remove")
            for name in foreign
        ]
    held = named("", (), found.facts.disks)
    return Agreement(serving, tuple(steps), foreign, tuple(found.checkpoints), tuple(held))


def reconcile(
    session: Session,
    repository: Repository,
    name: str,
    others: OtherHosts,
    remove_foreign: bool = False,
    check_only: bool = False,
) -> Agreement:
    """Reconcile a domain's checkpoints, bitmaps and restore points.

    With ``check_only``, only return the steps. Removes no bitmap if another host may have a disk open. Raises a
    CbtError, such as Refused while a job runs on the domain.
    """
    domain = session.domain(name)
    with backup_job.domain_lock(domain.uuid, domain.name, session.wait):
        left = leftovers.end_paused_start(domain, check_only)
        plan = _reconciled(domain, repository, others, remove_foreign, check_only)
    step = Step(SHUT_OFF, "", "a run that was killed had started it for its backup")
    return dataclasses.replace(plan, steps=(step, *plan.steps)) if left else plan


def _reconciled(
    domain: Domain, repository: Repository, others: OtherHosts, remove_foreign: bool, check_only: bool
) -> Agreement:
    found = situation.gather(domain, repository, OtherHosts(confirmed=True))
    if not found.facts.active:
        require_files_here(found.facts, f"reconcile {domain.name} while it is shut off")
    plan = plan_agreement(found, remove_foreign)
    if any(step.verb == REMOVE for step in plan.steps):
        skipped = why_withheld(situation.seen(domain, repository, others)[0])
        if skipped is not None:
            return Agreement(None, (), (), skipped=skipped)
    if plan.steps and found.facts.job is not None and leftovers.left_folder(domain) is None:
        raise Refused(
            f"Cannot change the checkpoints of {domain.name}: {found.facts.job_text} is running on it. Wait for it"
            " to end."
        )
    if check_only or not plan.steps:
        return plan
    if found.facts.job is not None:
        backup_job.end(domain)
    for step in plan.steps:
        if step.verb == REDEFINE:
            checkpoints.redefine(domain, found.facts, step.checkpoint, step.disks)
        else:
            checkpoints.remove(domain, step.checkpoint)
    return plan
