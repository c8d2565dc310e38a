# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files written in pieces from several threads, past which the machine's page cache stays free."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from samples import random_bytes

from _cbt import files
from _cbt.files import ParallelFile

MIB = 1 << 20


def _cached_bytes(path: Path) -> int:
    shown = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)], check=True, capture_output=True, text=True
    )
    return int(shown.stdout)


def test_pieces_written_by_several_threads_in_any_order_make_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BEHIND", 5 * MIB)
    pieces = [random_bytes(MIB - index, index) for index in range(40)]
    offsets = [sum(len(each) for each in pieces[:index]) for index in range(40)]
    path = tmp_path / "file"
    with path.open("wb") as opened, ThreadPoolExecutor(4) as pool:
        file = ParallelFile(opened.fileno())
        for done in [
            pool.submit(file.write, [pieces[index][:70000], pieces[index][70000:]], offsets[index])
            for index in reversed(range(40))
        ]:
            done.result()
    assert path.read_bytes() == b"".join(pieces)


def test_written_data_leaves_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BEHIND", 8 * MIB)
    piece = os.urandom(MIB)
    path = tmp_path / "file"
    with path.open("wb") as opened:
        file = ParallelFile(opened.fileno())
        for index in range(40):
            file.write([piece], index * MIB)
    assert _cached_bytes(path) <= 16 * MIB
    assert path.read_bytes() == piece * 40


def test_a_writeback_error_of_the_kernel_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailingDisk:
        def sync_file_range(self, _handle: int, _offset: object, _length: object, flags: int) -> int:
            ctypes.set_errno(errno.EIO)
            return -1 if flags == files._WRITE_AND_WAIT else 0

    monkeypatch.setattr(files, "_BEHIND", MIB)
    monkeypatch.setattr(files, "_LIBC", FailingDisk())
    with (tmp_path / "file").open("wb") as opened, pytest.raises(OSError, match="Input/output error"):
        ParallelFile(opened.fileno()).write([bytes(MIB)], 0)
