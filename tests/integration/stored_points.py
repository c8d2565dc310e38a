# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore points that a test stores without a domain."""

from __future__ import annotations

import datetime

from _cbt.repository.format.manifests import DiskRecord, RestorePoint, StoredFile
from _cbt.repository.repository import Repository

UUID = "6f1d0a52-9a3c-4c0e-8a53-0d1b1f6f4a11"


def publish(
    repository: Repository,
    point_id: str,
    taken: datetime.datetime,
    disks: tuple[DiskRecord, ...],
    files: dict[str, StoredFile],
) -> RestorePoint:
    """Publish a point of the domain web1 whose maps and other files are stored."""
    made = RestorePoint(
        id=point_id,
        repository=repository.id,
        domain="web1",
        uuid=UUID,
        created=taken.isoformat(timespec="microseconds"),
        parent=None,
        checkpoint=None,
        checkpoint_xml=None,
        incremental_set=point_id,
        consistency="crash",
        disks=disks,
        files=files,
        autostart=False,
        tags={},
        pinned=False,
        host="kvm1",
        versions={},
    )
    repository.publish(made)
    return made
