# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A RAW disk that looks like a qcow2 image, and a watch on the formats with which images are opened."""

from __future__ import annotations

import json
import os
import subprocess
import typing as t
from pathlib import Path

from lab.process import run_tool

from _cbt import programs

SIZE = 4 << 20
SECRET = b"root:$y$secret$hash:19000::::::\n"
_OPENING = ("info", "measure", "convert", "compare", "amend", "check", "bitmap", "create")


def forge(disk: Path, secret: Path, compat: str = "1.1") -> bytes:
    """Write a RAW disk as its guest may: a qcow2 header of 1 TiB that names a file of the host. Returns the disk's bytes."""
    secret.write_bytes(SECRET * 4096)
    run_tool(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-b", secret, "-F", "raw", disk, "1T"]
    )
    os.truncate(disk, SIZE)
    with disk.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"data" * 1024)
    disk.chmod(0o666)
    return disk.read_bytes()


def _node_is_named(node: t.Any) -> bool:
    """Whether a node for QEMU, and each below it, names its driver."""
    if isinstance(node, str) or node is None:
        return True
    return "driver" in node and all(_node_is_named(node[key]) for key in ("file", "image", "backing") if key in node)


def names_formats(arguments: t.Sequence[str]) -> bool:
    """Whether a command that opens images names the format of each."""
    program = os.path.basename(arguments[0])
    if program == "qemu-storage-daemon":
        nodes = [json.loads(each) for key, each in zip(arguments, arguments[1:]) if key == "--blockdev"]
        return bool(nodes) and all(map(_node_is_named, nodes))
    if program != "qemu-img":
        return not program.startswith("qemu-")
    names = (
        {"-f"}
        | ({"-F"} if arguments[1] == "compare" or {"-b", "-B"} & set(arguments) else set())
        | ({"-O"} if arguments[1] == "convert" else set())
    )
    return arguments[1] in _OPENING and names <= set(arguments)


class Watch:
    """Stands in for ``subprocess`` in the engine: what opens an image without its format is not run."""

    PIPE, DEVNULL, TimeoutExpired = subprocess.PIPE, subprocess.DEVNULL, subprocess.TimeoutExpired

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def _look(self, arguments: list[str]) -> list[str]:
        # What ends with the engine is started by it.
        program = arguments[arguments.index("-c") + 3 :] if arguments[0] == "setpriv" else arguments
        assert names_formats(program), program
        self.seen.append(program)
        return arguments

    def run(self, arguments: list[str], **options: t.Any) -> t.Any:
        return subprocess.run(self._look(arguments), check=options.pop("check", False), **options)

    def Popen(self, arguments: list[str], **options: t.Any) -> t.Any:  # noqa: N802  # as subprocess has it
        return subprocess.Popen(self._look(arguments), **options)

    @property
    def commands(self) -> set[str]:
        """The commands that were run."""
        return {arguments[1] if arguments[0] == "qemu-img" else arguments[0] for arguments in self.seen}

    def formats_of(self, path: Path) -> set[str]:
        """The formats with which an image was opened by qemu-img."""
        found = [each for each in self.seen if each[0] == "qemu-img" and str(path) in each]
        return {arguments[arguments.index("-f") + 1] for arguments in found}


def watched(monkeypatch: t.Any) -> Watch:
    """Watch the programs of the engine until the test ends."""
    watch = Watch()
    monkeypatch.setattr(programs, "subprocess", watch)
    return watch
