"""The figures as a table and as JSON."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt
from disk_image import MIB
from lab.errors import LabError
from lab.process import run_tool
from rows import MEMORY_BOUND, Row
from timed import Measurement

_HEAD = ("row", "what", "against", "ours s", "other s", "ours MiB/s", "other MiB/s")
_HEAD_END = ("ratio", "on disk", "processor", "bound", "", "ours MiB", "other MiB")


def machine_facts(connection: libvirt.virConnect, folder: Path) -> dict[str, Any]:
    """What the figures depend on; nothing that tells which machine it was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory // MIB,
        "file_system": run_tool(["stat", "--file-system", "--format=%T", folder]).strip(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libvirt": _dotted(connection.getLibVersion()),
        "qemu": _dotted(connection.getVersion()),
        "virtnbdbackup": run_tool(["virtnbdbackup", "--version"]).strip(),
        "nbdcopy": run_tool(["nbdcopy", "--version"]).split()[1],
    }


def table(rows: Sequence[Row]) -> str:
    """Every row in columns; see `LEGEND`."""
    lines = [(*_HEAD, *_HEAD_END), *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (1, 2) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


LEGEND = """\
ratio: ours by other, wall time of the whole process, medians. on disk: the same ratio when the
time is counted until all output had reached the disk; ours is durable when it ends, virtnbdbackup
and virtnbdrestore do not sync. processor: the ratio of the processors' seconds taken by the process
itself, to which no server counts: not QEMU, nor an object store on the same processors. Last columns:
peak memory of the process, or that of this program if more; what a program leaves running on its own
(qemu-nbd of virtnbdrestore) is not in it."""


def summary(rows: Sequence[Row]) -> str:
    """How cost grows with the disk, the most memory taken, and the bounds missed."""
    lines = []
    sizes = [row for row in rows if row.number == 4]
    if len(sizes) == 2:
        ours, other = (large / small for small, large in zip(*(row.seconds for row in sizes), strict=True))
        lines.append(f"row 4: 2 TiB costs {ours:.2f} times the time of 10 GiB; for the peer {other:.2f} times")
    most = peak(tuple(run for row in rows for run in row.ours))
    verdict = "met" if most < MEMORY_BOUND else "NOT MET"
    lines.append(f"most memory of ours {most / MIB:.0f} MiB, bound {MEMORY_BOUND // MIB}: {verdict}")
    missed = [f"{row.number} against {row.other_name}" for row in rows if row.met is False]
    lines.append(f"bounds missed: {', '.join(missed) or 'none'}")
    return "\n".join(lines)


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Everything measured, for JSON. Seconds and bytes."""
    return [
        {
            "row": row.number,
            "title": row.title,
            "against": row.other_name,
            "bytes": row.amount,
            "ours_seconds": row.seconds[0],
            "other_seconds": row.seconds[1],
            "ratio": row.ratio,
            "ratio_on_disk": row.durable_ratio,
            "ratio_of_processor": row.processor_ratio,
            "bound": row.bound,
            "met": row.met,
            "ours_peak_bytes": peak(row.ours),
            "other_peak_bytes": peak(row.other),
            "ours_runs": [dataclasses.asdict(run) for run in row.ours],
            "other_runs": [dataclasses.asdict(run) for run in row.other],
        }
        for row in rows
    ]


def peak(runs: Sequence[Measurement]) -> int:
    """The most memory any of the runs took, in bytes."""
    return max(run.peak_bytes for run in runs)


def _cells(row: Row) -> tuple[str, ...]:
    ours, other = row.seconds
    return (
        str(row.number),
        row.title,
        row.other_name,
        f"{ours:.2f}",
        f"{other:.2f}",
        f"{row.amount / MIB / ours:.0f}",
        f"{row.amount / MIB / other:.0f}",
        f"{row.ratio:.2f}",
        f"{row.durable_ratio:.2f}",
        f"{row.processor_ratio:.2f}",
        "" if row.bound is None else f"{row.bound:.2f}",
        {None: "", True: "met", False: "NOT MET"}[row.met],
        f"{peak(row.ours) / MIB:.0f}",
        f"{peak(row.other) / MIB:.0f}",
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    raise LabError("the processor has no name")


def _dotted(version: int) -> str:
    return f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}"
