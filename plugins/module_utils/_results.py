# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converts results to the form that modules return."""

from __future__ import annotations

import dataclasses
import importlib
import time
import typing as t

from ._cbt.errors import CbtError
from ._cbt.printable import utc_time
from ._runtime import Module, reported, require

if t.TYPE_CHECKING:
    from ._cbt.hypervisor.domain_xml.disks import Bitmap, Disk
    from ._cbt.operations.export.export import Export
    from ._cbt.repository.format.manifests import RestorePoint
    from ._cbt.repository.sharing.leases import LeaseHolder


def reduced(module: Module, result: t.Any) -> t.Any:
    """Return the result, or the part of it that the option ``query`` selects."""
    query = module.params["query"]
    if query is None:
        return result
    require(module, "jmespath")
    jmespath = importlib.import_module("jmespath")
    with reported(module):
        try:
            result = jmespath.search(query, result)
        except jmespath.exceptions.JMESPathError as error:
            raise CbtError(f"The query {query} cannot be read: {error}") from error
    return result


def point_summary(point: RestorePoint) -> dict[str, t.Any]:
    """Return a restore point as modules return it."""
    keys = ("id", "domain", "uuid", "created", "parent", "checkpoint", "consistency")
    return {key: getattr(point, key) for key in keys}


def point_details(point: RestorePoint) -> dict[str, t.Any]:
    """Return a restore point as the info module returns it."""
    disks = [
        {"target": disk.target, "virtual_size": disk.size, "mode": disk.mode, "reason": disk.reason, **disk.statistics}
        for disk in point.disks
    ]
    return {
        **point_summary(point),
        "disks": disks,
        "tags": dict(point.tags),
        "note": point.note,
        "pinned": point.pinned,
        "host": point.host,
    }


def session_details(holder: LeaseHolder) -> dict[str, t.Any]:
    """Return the holder of a lease as modules return it."""
    # Reading the store's own clock requires a write. This host's clock is accurate enough for display.
    return {
        "host": holder.host,
        "process": holder.process,
        "operation": holder.operation,
        "since": utc_time(holder.since),
        "lapsed": holder.lapsed(time.time()),
    }


def disk_details(disk: Disk) -> dict[str, t.Any]:
    """Return a domain's disk as modules return it."""
    return {
        "target": disk.target,
        "source": disk.source,
        "type": disk.type,
        "device": disk.device,
        "format": disk.format,
        "compat": disk.compat,
        "virtual_size": disk.virtual_size,
        "tracked": disk.why_untrackable is None and any(bitmap.recording for bitmap in disk.bitmaps),
        "reason": disk.why_untrackable,
        "bitmaps": [bitmap_details(bitmap) for bitmap in disk.bitmaps],
    }


def bitmap_details(bitmap: Bitmap) -> dict[str, t.Any]:
    """Return a bitmap as modules return it."""
    fields = dataclasses.asdict(bitmap)
    return {key: fields[key] for key in ("name", "granularity", "dirty_bytes", "inconsistent")}


def export_details(export: Export) -> dict[str, t.Any]:
    """Return an export as modules return it."""
    plan = export.plan
    return {
        "name": plan.name,
        "domain": plan.domain,
        "uuid": plan.uuid,
        "restore_point": plan.restore_point,
        "repository": plan.location,
        "writable": plan.folders.overlay is not None,
        "hold": export.hold,
        "running": export.pid is not None,
        "exports": [
            {"target": target, "uri": plan.uri(target), "size": size, "pid": export.pid}
            for target, size in plan.disks.items()
        ],
    }
