"""Running a program and telling what it cost."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 4 << 20


class BenchmarkError(Exception):
    """Something that was to be measured failed, or did not do what it should."""


@dataclass(frozen=True)
class Measurement:
    """What one run cost. Seconds and bytes.

    `settle_seconds` is how long its output then took to reach the disk, near 0 where the run
    itself made it durable. Processes which a program leaves to themselves are not counted.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    settle_seconds: float


def measure(command: Sequence[str | Path], output: Path | None = None) -> tuple[Measurement, str]:
    """Run a program to its end; what it cost and what it printed.

    `output` is a file or folder it wrote, which is then brought to the disk and out of the page
    cache. BenchmarkError if the program fails. The kernel counts the peak memory of the process
    which starts a program (this one) as the program's, so this one must stay small.
    """
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        started = time.monotonic()
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=said,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        try:
            _pid, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.terminate()
            child.wait()
            raise
        wall = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        said.seek(0)
        if child.returncode != 0:
            words = " ".join(str(word) for word in command[:3])
            tail = (said.read() or printed.read())[-2000:].strip()
            raise BenchmarkError(f"{words} … ended with {child.returncode}: {tail}")
        cpu = usage.ru_utime + usage.ru_stime
        settled = settle(output) if output is not None else 0.0
        return Measurement(wall, cpu, usage.ru_maxrss * 1024, settled), printed.read()


def measure_json(command: Sequence[str | Path], output: Path | None = None) -> tuple[Measurement, dict[str, Any]]:
    """As `measure`, for a program that prints a JSON object."""
    measurement, printed = measure(command, output)
    return measurement, dict(json.loads(printed))


def settle(path: Path) -> float:
    """Bring a file or folder onto the disk and drop it from the page cache; the seconds it took."""
    files = _files(path)
    started = time.monotonic()
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return time.monotonic() - started


def warm(path: Path) -> None:
    """Read a file or folder once, so that it is in the page cache for whoever comes next."""
    buffer = bytearray(_CHUNK)
    for file in _files(path):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
