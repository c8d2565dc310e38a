# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether a domain can be backed up, and cleans up after killed runs."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ...errors import Refused
from ...hypervisor import backup_job, leftovers
from ...hypervisor.connection import Domain, explained, libvirt
from ...hypervisor.domain import SHUTDOWN, DomainFacts, read_domain
from ...hypervisor.other_hosts import why_withheld
from ...repository.format import names
from .plan import Situation


def check_job(domain: Domain, facts: DomainFacts, abort_foreign: bool) -> None:
    """Raise Refused if a job of another tool runs and may not be ended.

    A backup job may be ended with ``abort_foreign``.
    """
    if facts.job == SHUTDOWN:
        raise Refused(f"Cannot back up {facts.name}: it is shutting down. Run the backup again when it is shut off.")
    if facts.job is None or leftovers.left_folder(domain) or (abort_foreign and facts.job == "backup"):
        return
    raise Refused(
        f"Cannot back up {facts.name}: {facts.job_text} is running on it that is not ours. Wait for it to end, or end"
        f" it with virsh domjobabort {facts.name} or, if it is a backup job, with abort_foreign_job: true."
    )


def check_block_jobs(domain: Domain, facts: DomainFacts, targets: t.Iterable[str]) -> None:
    """Raise Refused if libvirt is copying or merging one of the disks: it does not back up such a disk."""
    for target in targets if facts.active else ():
        with explained(f"read the block job of {target} of {facts.name}"):
            job = domain.api.blockJobInfo(target)
        if job and job["type"] != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP:
            raise Refused(
                f"Cannot back up {facts.name}: a block job (copy, commit or pull) is running on {target}. Wait for it"
                f" to end, or end it with virsh blockjob {facts.name} {target} --abort or --pivot, or exclude the disk."
            )


def check_name(domain: Domain) -> None:
    """Raise Refused if the name of the domain cannot be used in a repository."""
    if not names.is_domain_name(domain.name):
        raise Refused(
            f"Cannot back up the domain {names.shown(domain.name)}: its name contains control characters. Rename it"
            " with virsh domrename."
        )


def clear(domain: Domain, scratch_dir: str, abort_foreign: bool) -> list[str]:
    """End jobs and delete scratch files of killed runs; returns messages.

    With ``abort_foreign``, a backup job of another tool is ended too.
    """
    done = leftovers.clear(domain, scratch_dir)
    if abort_foreign and read_domain(domain).job == "backup":
        backup_job.end(domain)
        done.append(f"A backup job of another tool on {domain.name} was ended because abort_foreign_job is set.")
    return done


def _about(name: str, left: bool | None) -> list[str]:
    """Return messages about a domain that was left started, see ``leftovers.end_paused_start``."""
    if left is None:
        return [
            f"{name} was started with paused virtual CPUs by kvm.cbt on another host or as another user. If that run"
            f" is over, shut it off with virsh destroy {name}."
        ]
    return [f"{name} is shut off first: a run that was killed had started it for its backup."] if left else []


def foreseen(domain: Domain, found: Situation) -> Situation:
    """Return the situation of a backup that first shuts a domain off, for check mode."""
    if not leftovers.end_paused_start(domain, check_only=True):
        return found
    facts = dataclasses.replace(found.facts, state="shutoff", active=False, job=None)
    return dataclasses.replace(found, facts=facts)


@contextlib.contextmanager
def started(
    domain: Domain, wanted: bool, check_only: bool, facts: t.Callable[[], DomainFacts]
) -> t.Iterator[list[str]]:
    """Start a domain that is shut off, with its processors paused, for the block.

    A domain that a killed run had left like this is shut off first; yields messages about that. Raises Refused if its
    memory is saved to disk: a start consumes it. It is not started with ``check_only``, and not if a disk is withheld
    in its ``facts``, which are read once it is known to be shut off.
    """
    left = _about(domain.name, leftovers.end_paused_start(domain, check_only))
    if not wanted or domain.api.isActive() or why_withheld(facts()) is not None:
        yield left
        return
    if domain.api.hasManagedSaveImage():
        raise Refused(
            f"Cannot start {domain.name} paused for its backup: its memory is saved to disk, and would be lost."
            " Start it to continue there, set offline to read, or discard the memory with virsh managedsave-remove."
        )
    if check_only:
        yield left
        return
    from ...hypervisor import paused_start  # loaded only with start_paused

    paused_start.start(domain)
    try:
        yield left
    finally:
        paused_start.shut_off(domain)
