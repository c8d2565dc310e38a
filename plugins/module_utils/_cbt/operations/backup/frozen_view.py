# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two ways to a frozen view of a domain's disks: a backup job of a running domain, and the images of one that is shut off."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ...endpoint import TcpServer
from ...errors import HypervisorError
from ...hypervisor import agent, backup_job, checkpoints, offline_export
from ...hypervisor.backup_job import Export, JobDisk
from ...hypervisor.connection import Domain
from ...hypervisor.domain import DomainFacts


@dataclasses.dataclass(frozen=True)
class View:
    """Exports that show the disks as they were at one instant; ``note`` is why they are not file-system consistent."""

    exports: tuple[Export, ...]
    consistency: str
    note: str | None
    checkpoint_xml: str | None


@dataclasses.dataclass(frozen=True)
class Quiescing:
    """How the guest is to be frozen: policy (auto, required, never) and mount points, empty for all."""

    policy: str
    mountpoints: tuple[str, ...]


@contextlib.contextmanager
def running(
    domain: Domain,
    facts: DomainFacts,
    wanted: t.Sequence[JobDisk],
    folder: str,
    checkpoint: str | None,
    tracked: t.Collection[str],
    quiescing: Quiescing,
    ready: t.Callable[[], None],
    servers: t.Sequence[TcpServer] = (),
) -> t.Iterator[View]:
    """Begin a backup job, together with the ``checkpoint`` on the ``tracked`` disks, the guest frozen for that instant.

    ``folder`` is the hypervisor's, ``servers`` as in ``backup_job``. ``ready`` is called when the guest is frozen, and may raise to end it there.
    """
    xml = checkpoints.checkpoint_xml(checkpoint, tracked, facts.disks) if checkpoint else None
    if checkpoint is not None:
        checkpoints.add_marks(domain, facts, checkpoint, tracked)
    with backup_job.backup_job(domain, facts, wanted, folder, xml, servers) as begin:
        with agent.quiesced(domain, facts, quiescing.policy, quiescing.mountpoints) as quiesce:
            ready()
            exports = begin()
        recorded = checkpoints.read_xml(domain, checkpoint) if checkpoint else None
        yield View(exports, quiesce.consistency, quiesce.note if quiescing.policy == "auto" else None, recorded)


@contextlib.contextmanager
def shut_off(
    domain: Domain,
    facts: DomainFacts,
    wanted: t.Sequence[JobDisk],
    folder: str,
    checkpoint: str | None,
    tracked: t.Collection[str],
) -> t.Iterator[View]:
    """Serve the images, the next bitmap added to the ``tracked`` ones; libvirt is told of the checkpoint when the block ends well."""
    if checkpoint is not None:
        checkpoints.add_bitmaps(facts, checkpoint, tracked)
    xml = checkpoints.checkpoint_xml(checkpoint, tracked, facts.disks) if checkpoint else None
    consistency = agent.FILESYSTEM if facts.shut_down else agent.CRASH
    note = None if facts.shut_down else "libvirt does not know that the guest ended in order before it was shut off"
    with contextlib.ExitStack() as stack:
        yield View(stack.enter_context(offline_export.image_exports(facts, wanted, folder)), consistency, note, xml)
    if checkpoint is not None:
        # Not to be missed: the next backup finds the bitmap and tells libvirt of it, as after a move to another host.
        with contextlib.suppress(HypervisorError):
            checkpoints.redefine(domain, facts, checkpoint, tracked)
