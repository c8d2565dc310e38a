# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of restore points for people to read, from the result of cbt_backup_info."""

from __future__ import annotations

import typing as t

from ansible_collections.kvm.cbt.plugins.module_utils._cbt.printable import printable
from ansible_collections.kvm.cbt.plugins.plugin_utils._outcomes import size

Point = t.Mapping[str, t.Any]


def domains_table(points: t.Sequence[Point]) -> list[str]:
    """Return a line for each domain: its number of restore points, and facts about the newest one."""
    heads = ("DOMAIN", "POINTS", "NEWEST", "SIZE", "VERIFIED", "DAMAGED", "CONSISTENCY")
    rows = []
    for name, found in _by_domain(points).items():
        newest = found[-1]
        damaged = sum(point["damaged"] for point in found)
        rows.append(
            (
                name,
                len(found),
                _time(newest["created"]),
                _size(newest),
                _verified(newest),
                damaged,
                newest["consistency"],
            )
        )
    return _aligned(heads, rows)


def points_table(points: t.Sequence[Point]) -> list[str]:
    """Return a line for each restore point, those of a domain together, oldest first."""
    heads = (
        "DOMAIN",
        "RESTORE POINT",
        "CREATED",
        "SIZE",
        "VERIFIED",
        "DAMAGED",
        "CONSISTENCY",
        "PINNED",
        "TAGS",
        "NOTE",
    )
    rows = [
        (
            *(name, point["id"], _time(point["created"]), _size(point), _verified(point)),
            *(_yes(point["damaged"]), point["consistency"], _yes(point["pinned"])),
            *(",".join(f"{key}={value}" for key, value in sorted(point["tags"].items())), point["note"]),
        )
        for name, found in _by_domain(points).items()
        for point in found
    ]
    return _aligned(heads, rows)


def _by_domain(points: t.Sequence[Point]) -> dict[str, list[Point]]:
    """Return the points by the newest name of their domain, with its UUID if several domains have this name."""
    by_uuid: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: (point["created"], point["id"])):
        by_uuid.setdefault(point["uuid"], []).append(point)
    names = [found[-1]["domain"] for found in by_uuid.values()]
    shown = {
        name if names.count(name) == 1 else f"{name} ({uuid})": by_uuid[uuid]
        for name, uuid in sorted(zip(names, by_uuid))
    }
    return shown


def _time(created: str) -> str:
    return created[:16].replace("T", " ")


def _size(point: Point) -> str:
    return size(sum(disk["virtual_size"] for disk in point["disks"]))


def _verified(point: Point) -> str:
    last = point["verified"]
    if last is None:
        return "never"
    share = f" {last['percent']} %" if last["percent"] != 100 else ""
    return f"{_time(last['at'])} {last['level']}{share} {last['status']}"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _aligned(heads: t.Sequence[str], rows: t.Sequence[t.Sequence[t.Any]]) -> list[str]:
    cells = [heads, *([printable(str(cell)) or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
