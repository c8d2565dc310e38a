# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists the firmware that a host describes."""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import typing as t

_DESCRIPTORS = ("/usr/share/qemu/firmware/*.json", "/etc/qemu/firmware/*.json")
_LARGEST = 1 << 20  # characters read of a descriptor


def described_firmware() -> frozenset[str]:
    """Return the paths of firmware and variable templates in this host's descriptors."""
    found: set[str] = set()
    for path in itertools.chain.from_iterable(map(glob.glob, _DESCRIPTORS)):
        with contextlib.suppress(OSError, ValueError, RecursionError), open(path, encoding="utf-8") as file:
            found.update(_filenames(json.loads(file.read(_LARGEST))))
    return frozenset(found)


def _filenames(value: t.Any) -> t.Iterator[str]:
    if isinstance(value, dict):
        named = value.get("filename")
        if isinstance(named, str) and os.path.isabs(named):
            yield named
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from _filenames(each)
