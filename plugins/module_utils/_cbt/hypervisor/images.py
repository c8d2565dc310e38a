# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images outside of a running domain, by QEMU's own tools. Private to the collection."""

from __future__ import annotations

import contextlib
import os
import typing as t

from .. import programs
from ..errors import ProgramError, Refused


def info(path: str, share: bool = False) -> t.Mapping[str, t.Any]:
    """What ``qemu-img info`` says of an image. ``share`` reads it even while a domain has it open for writing."""
    arguments = ["qemu-img", "info", "--output=json", *(["-U"] if share else []), "--", path]
    return t.cast("t.Mapping[str, t.Any]", programs.run_json(arguments))


def in_use(path: str) -> bool:
    """True if some process, such as a running domain, holds the image open for writing."""
    try:
        info(path)
    except ProgramError as error:
        return "lock" in str(error)
    return False


def create(path: str, fmt: str, size: int, options: t.Mapping[str, str]) -> None:
    """Create an empty image of ``size`` bytes; ``options`` are qemu-img's ``-o`` options."""
    given = [f"{key}={value}" for key, value in sorted(options.items())]
    programs.run(["qemu-img", "create", "-q", "-f", fmt, *(["-o", ",".join(given)] if given else []), "--", path, str(size)])


def remove_bitmap(path: str, name: str) -> None:
    """Remove a bitmap from the image of a shut-off domain."""
    programs.run(["qemu-img", "bitmap", "--remove", "--", path, name])


@contextlib.contextmanager
def writable_export(path: str, fmt: str, folder: str, connections: int) -> t.Iterator[t.Tuple[str, programs.Service]]:
    """Export an image for writing over NBD on a private Unix socket in ``folder``.

    Yields the socket's path and the serving process: call its ``stop`` after the last flush, so that
    the image is closed in order. Leaving the block without that ends the process at once.
    """
    socket = os.path.join(folder, "export.sock")
    if len(os.fsencode(socket)) > 100:
        raise Refused(f"Cannot serve {path}: the socket's path {socket} is longer than a Unix socket allows. Choose a shorter scratch directory.")
    arguments = ["qemu-nbd", "-f", fmt, "-e", str(connections), "-t", "-k", socket, "--discard=unmap", "--cache=writeback", "--", path]
    with programs.service(arguments) as server:
        yield socket, server
