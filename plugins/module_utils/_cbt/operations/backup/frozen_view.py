# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a frozen view of the disks of a domain.

The view of a running domain is a backup job. For a domain that is shut off, the images are exported. The guest itself
is frozen only while the backup job begins; agent.py decides whether it is, and thaws it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ...endpoint import Export, TcpServer
from ...errors import HypervisorError
from ...hypervisor import agent, backup_job, checkpoints
from ...hypervisor.backup_job import Wanted
from ...hypervisor.connection import Domain
from ...hypervisor.domain import DomainFacts


@dataclasses.dataclass(frozen=True)
class View:
    """Exports that show the disks as they were at one instant.

    ``note`` says why the disks are not consistent at the level of file systems, or is None.
    """

    exports: tuple[Export, ...]
    consistency: str
    note: str | None
    checkpoint_xml: str | None


@dataclasses.dataclass(frozen=True)
class ViewRequest:
    """The disks of a view, and the ``checkpoint`` to create on the ``tracked`` ones.

    The checkpoint begins at the instant of the view. It is None if no disk is tracked.
    """

    domain: Domain
    facts: DomainFacts
    wanted: Wanted
    checkpoint: str | None
    tracked: t.Collection[str]

    @property
    def checkpoint_xml(self) -> str | None:
        """Return the XML of the checkpoint for libvirt, or None."""
        name = self.checkpoint
        return checkpoints.checkpoint_xml(name, self.tracked, self.facts.disks) if name is not None else None


@contextlib.contextmanager
def running(
    asked: ViewRequest,
    folder: str,
    freezer: agent.Freezer,
    ready: t.Callable[[], None],
    servers: t.Sequence[TcpServer],
) -> t.Iterator[View]:
    """Begin a backup job and the checkpoint at one instant, with the guest frozen.

    ``folder`` is on the hypervisor; ``servers`` is as in ``backup_job``. ``ready`` is called while the guest is
    frozen, and may raise to cancel the job.
    """
    domain, facts, checkpoint = asked.domain, asked.facts, asked.checkpoint
    if checkpoint is not None:
        checkpoints.add_identity_bitmaps(domain, facts, checkpoint, asked.tracked)
    job = backup_job.backup_job(domain, facts, asked.wanted, folder, asked.checkpoint_xml, servers)
    with freezer.settled(), job as begin:
        with freezer.frozen():
            ready()
            exports = begin()
        recorded = checkpoints.read_xml(domain, checkpoint) if checkpoint else None
        yield View(exports, freezer.consistency, freezer.note, recorded)


@contextlib.contextmanager
def shut_off(asked: ViewRequest, folder: str) -> t.Iterator[View]:
    """Serve the images. The bitmaps of the checkpoint are in the tracked ones.

    If the block succeeds, the checkpoint is defined in libvirt; if that fails, the error is ignored.
    """
    from ...hypervisor import offline_export  # loaded only for a domain that is shut off

    facts, checkpoint = asked.facts, asked.checkpoint
    consistency = agent.FILESYSTEM if facts.shut_down else agent.CRASH
    note = None if facts.shut_down else "libvirt does not report that the guest shut down properly"
    if facts.saved:
        note = "its memory is saved to disk, and a restored machine starts without it"
    with contextlib.ExitStack() as stack:
        exports = stack.enter_context(offline_export.image_exports(facts, asked.wanted, folder))
        yield View(exports, consistency, note, asked.checkpoint_xml)
    if checkpoint is not None:
        # Best effort: after a failure, the next backup finds the bitmap and redefines the checkpoint, as after a
        # migration.
        with contextlib.suppress(HypervisorError):
            checkpoints.redefine(asked.domain, facts, checkpoint, asked.tracked)
