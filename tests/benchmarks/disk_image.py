"""The disk which is backed up: program files, bytes that do not compress, and holes, mixed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import BinaryIO

from lab.process import run_tool

MIB = 1 << 20
_CHUNK = 4 * MIB
_UNIT = 64 * MIB  # of program files, then as much of random bytes, then a hole
_HOLE = 43 * MIB  # a third of the data before it


def build(folder: Path, name: str, data_bytes: int) -> tuple[Path, dict[str, int]]:
    """Make a qcow2 (version 3) image holding `data_bytes` of data; also tells what is in it.

    Half of the data is program files (a tar of /usr, as far as it goes), the other half and what
    is missing is random; the disk is a third larger than its data.
    """
    raw, image = folder / f"{name}.raw", folder / f"{name}.qcow2"
    try:
        content = _write_raw(raw, data_bytes)
        run_tool(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", raw, image])
    finally:
        raw.unlink(missing_ok=True)
    image.chmod(0o644)
    return image, content


def _write_raw(path: Path, data_bytes: int) -> dict[str, int]:
    content = {"program_bytes": 0, "random_bytes": 0}
    with path.open("wb", buffering=0) as disk, ProgramFiles() as programs:
        left = data_bytes
        while left:
            length = min(_UNIT, left)
            taken = _copy(programs.stream, disk, length)
            _random(disk, length - taken)
            content["program_bytes"] += taken
            content["random_bytes"] += length - taken
            left -= length
            length = min(_UNIT, left)
            _random(disk, length)
            content["random_bytes"] += length
            left -= length
            disk.seek(_HOLE, os.SEEK_CUR)
        size = -(-max(disk.tell(), data_bytes * 4 // 3) // MIB) * MIB
        disk.truncate(size)
    return {**content, "virtual_bytes": size}


def _copy(source: BinaryIO, disk: BinaryIO, length: int) -> int:
    copied = 0
    while copied < length:
        data = source.read(min(_CHUNK, length - copied))
        if not data:
            break
        disk.write(data)
        copied += len(data)
    return copied


def _random(disk: BinaryIO, length: int) -> None:
    while length:
        piece = min(_CHUNK, length)
        disk.write(os.urandom(piece))
        length -= piece


class ProgramFiles:
    """A tar of this machine's programs as a stream, ended when enough was read."""

    def __enter__(self) -> ProgramFiles:
        self._tar = subprocess.Popen(
            ["tar", "--create", "--one-file-system", "--directory=/", "usr"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._tar.stdout is None:
            raise OSError("tar has no output")
        self.stream: BinaryIO = self._tar.stdout  # type: ignore[assignment]
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stream.close()
        self._tar.terminate()
        self._tar.wait()
