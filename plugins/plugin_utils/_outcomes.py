# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describes the result of a module in one line, for progress and the summary."""

from __future__ import annotations

import typing as t

Result = t.Mapping[str, t.Any]


def described(module: str, result: Result) -> str:
    """Describe in one line what a module did, or would do in check mode.

    ``module`` is its name without the collection.
    """
    if result.get("failed"):
        return str(result.get("msg") or "failed without a message")
    return _DESCRIBE.get(module, _plainly)(result)


def size(count: float) -> str:
    """Return bytes as text in the largest unit that leaves at least one."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.0f} bytes" if units[0] == "bytes" else f"{count:.1f} {units[0]}"


def warning_text(warning: t.Any) -> str:
    """Return the text of a warning. ansible-core 2.19 and later wrap it in an object."""
    return warning if isinstance(warning, str) else str(getattr(getattr(warning, "event", None), "msg", warning))


def _plainly(result: Result) -> str:
    return "changed" if result.get("changed") else "ok"


def _backup(result: Result) -> str:
    if "skipped" in result:
        return f"skipped: {result['skipped']}"
    disks = result["disks"]
    modes = ", ".join(f"{disk['target']} {disk['mode']}" for disk in disks) or "no disks"
    modes += "".join(f"; {reason}" for reason in _left_out(result))
    if "restore_point" not in result:
        return f"would examine {size(_sum(disks, 'dirty_bytes'))}: {modes}"
    counts = f"{size(_sum(disks, 'read_bytes'))} read, {size(_sum(disks, 'stored_bytes'))} stored"
    return f"{result['restore_point']['id']}: {modes}; {counts} in {result['duration']:.0f} s"


def _left_out(result: Result) -> list[str]:
    """Return the reasons of skipped disks of which the module warned."""
    warned = [warning_text(each) for each in result.get("warnings", ())]
    skipped = [disk for disk in result["disks"] if disk["mode"] == "skipped"]
    return list(dict.fromkeys(disk["reason"] for disk in skipped if any(disk["reason"] in text for text in warned)))


def _sum(items: t.Iterable[Result], key: str) -> int:
    return sum(item.get(key) or 0 for item in items)


def _checkpoint(result: Result) -> str:
    if "skipped" in result:
        return f"skipped: {result['skipped']}"
    foreign = [f"not ours: {', '.join(result['foreign'])}"] if result.get("foreign") else []
    return "; ".join([*result["actions"], *foreign]) or "in order"


def _image(result: Result) -> str:
    left = [f"{disk['target']} is not converted: {disk['reason']}" for disk in result["left"]]
    return "; ".join([*result["actions"], *left]) or "nothing to convert"


def _restore(result: Result) -> str:
    if "skipped" in result:
        return f"skipped: {result['skipped']}"
    disks = ", ".join(f"{disk['target']} to {disk['path']}" for disk in result["disks"])
    taken = f"{result['domain']} of {result['restore_point']['id']}: {disks}"
    return f"{taken} in {result['duration']:.0f} s" if "duration" in result else f"would restore {taken}"


def _verify(result: Result) -> str:
    points = result["restore_points"]
    bad = [point["id"] for point in points if point["status"] != "ok"]
    checked = size(_sum(points, "checked_bytes"))
    text = f"{len(points) - len(bad)} of {len(points)} restore points are intact, {checked} checked"
    return f"{text}; damaged: {', '.join(bad)}" if bad else text


def _retention(result: Result) -> str:
    counts = f"{len(result['kept'])} kept, {len(result['removed'])} removed"
    return f"{counts}, {size(result['reclaimed_bytes'])} reclaimed" if "reclaimed_bytes" in result else counts


_DESCRIBE: t.Mapping[str, t.Callable[[Result], str]] = {
    "cbt_backup": _backup,
    "cbt_checkpoint": _checkpoint,
    "cbt_image": _image,
    "cbt_restore": _restore,
    "cbt_verify": _verify,
    "cbt_retention": _retention,
}
