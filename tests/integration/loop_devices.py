# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loop devices: block devices of this machine with the content of a file."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import pytest
from lab.errors import LabError
from lab.process import run_tool


@contextlib.contextmanager
def loop_device(backing: Path) -> t.Iterator[Path]:
    """A loop device on a file. Skips the test on a machine without them."""
    try:
        made = Path(run_tool(["losetup", "--find", "--show", backing]).strip())
    except LabError as error:
        pytest.skip(f"this machine has no loop devices: {error}")
    try:
        yield made
    finally:
        run_tool(["losetup", "--detach", made])
