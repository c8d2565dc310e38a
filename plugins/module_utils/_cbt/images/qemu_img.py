# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads and changes disk images with qemu-img.

A guest writes every byte of a RAW disk, and can make it look like an image of any format that names any file of the
host. So the format of an image is never guessed: the definition names it, or the image above it in the chain.
"""

from __future__ import annotations

import json
import os
import stat
import typing as t

from .. import programs
from ..errors import Refused

MAGIC = b"QFI\xfb"
_LONGEST_CHAIN = 200  # images; libvirt's limit

Node = dict[str, t.Any]


class Link(t.NamedTuple):
    """An image of a chain; ``named`` is whether the image above names its format."""

    path: str
    format: str
    named: bool = True


def info(path: str, fmt: str) -> t.Mapping[str, t.Any]:
    """Return the output of ``qemu-img info``, also of an image that a domain has open for writing."""
    arguments = ["qemu-img", "info", "--output=json", "-U", "-f", fmt, "--", path]
    return t.cast("t.Mapping[str, t.Any]", programs.run_json(arguments))


def has_qcow2_header(path: str) -> bool:
    """Whether a file begins like a qcow2 image; a RAW disk may, too. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def chain(path: str, fmt: str) -> list[Link]:
    """Return an image and its backing files, the lowest last.

    libvirt treats a backing file without a named format as RAW, and starts no domain with another one. Raises
    ProgramError, or Refused if the chain is too long.
    """
    links = [Link(path, fmt)]
    while links[-1].format != "raw" and os.path.isabs(links[-1].path):
        above = links[-1]
        found = info(above.path, above.format)
        below, named = found.get("full-backing-filename"), found.get("backing-filename-format")
        if below is None:
            break
        if named is None and above.format == "qcow2" and os.path.isabs(below):
            links.append(Link(below, "raw", False))
        elif named is None and not below.startswith("json:"):
            raise _unnamed(above.path, below)
        else:
            links.append(Link(below, named or "raw"))
        if len(links) > _LONGEST_CHAIN:
            raise Refused(
                f"Cannot read {path}: it has more than {_LONGEST_CHAIN} backing images. Shorten the chain with virsh"
                " blockcommit."
            )
    return links


def _unnamed(path: str, below: str) -> Refused:
    return Refused(
        f"Cannot use {path}: it does not name the format of its backing file {below}, and formats are not guessed."
        f" Record the format with qemu-img rebase -u -f qcow2 -F raw -b {below} {path} (or -F qcow2)."
    )


def require_formats(path: str, fmt: str) -> None:
    """Raise Refused if an image of a chain does not name its backing file's format.

    QEMU would guess that format.
    """
    links = chain(path, fmt)
    for above, link in zip(links, links[1:]):
        if not link.named:
            raise _unnamed(above.path, link.path)


def below(path: str, fmt: str) -> Node | None:
    """Return the backing node for QEMU with all formats explicit.

    Returns None if there is no backing file, or if the headers name all formats. Raises Refused if an unnamed format
    cannot be RAW.
    """
    links = chain(path, fmt)[1:]
    if all(link.named for link in links):
        return None
    node: Node | None = None
    for link in reversed([link for link in links if os.path.isabs(link.path)]):
        if not link.named and has_qcow2_header(link.path):
            require_formats(path, fmt)
        made: Node = {"driver": link.format, "file": file_node(link.path)}
        node = made if node is None else {**made, "backing": node}
    return node


def file_node(path: str) -> Node:
    """Return the QEMU node of a file or block device."""
    return {"driver": "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file", "filename": path}


def _alone(path: str) -> str:
    """Open a qcow2 image without its backing file, which the command does not need."""
    return "json:" + json.dumps({"driver": "qcow2", "backing": None, "file": {"filename": path}})


def remove_bitmap(path: str, name: str) -> None:
    """Remove a bitmap from the qcow2 image of a shut-off domain."""
    programs.run(["qemu-img", "bitmap", "--remove", "-f", "qcow2", "--", _alone(path), name])


def add_bitmap(path: str, name: str, granularity: int, recording: bool) -> None:
    """Add a bitmap to the qcow2 image of a shut-off domain; ``granularity`` in bytes."""
    arguments = [
        "qemu-img",
        "bitmap",
        "--add",
        *([] if recording else ["--disable"]),
        "-g",
        str(granularity),
        "-f",
        "qcow2",
    ]
    programs.run([*arguments, "--", _alone(path), name])
