# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of a restore, or of its plan."""

from __future__ import annotations

import dataclasses

from ...busy import RESTORE_NAMES, limited_by
from ...repository.format.manifests import RestorePoint
from . import machine, machine_xml
from .plan import DiskRestore


@dataclasses.dataclass(frozen=True)
class RestoreResult:
    """The result of a restore, or of its plan, and the seconds it took.

    ``domain_xml`` is the original's definition, or that of the defined ``machine``. ``warnings`` name what could not be
    restored as it was.
    """

    point: RestorePoint
    disks: tuple[DiskRestore, ...]
    domain_xml: str
    machine: machine.MachinePlan | None
    duration: float
    warnings: tuple[str, ...]

    @property
    def shown_xml(self) -> str:
        """The XML without its secrets."""
        return machine_xml.without_secrets(self.domain_xml)

    @property
    def limited_by(self) -> str | None:
        """One sentence that says what limited the writing of the disks."""
        return limited_by((disk.busy for disk in self.disks), RESTORE_NAMES)
