# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures a machine's files other than its disks, for a restore point.

hypervisor/domain_xml/machine_files.py lists these files. Each is stored in compressed pieces of at most PIECE bytes of
the file, so that neither a backup nor a restore needs the whole file in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import grp
import hashlib
import json
import os
import pwd
import tempfile
import typing as t
import zlib

from ...errors import CbtError
from ...hypervisor.domain_xml.machine_files import MachineFile
from ...trusted_files import open_file

INDEX = "machine.json"
PIECE = 8 << 20
_MIB = 1 << 20
LARGEST: t.Mapping[str, int] = {  # bytes, by kind
    "loader": 128 * _MIB,
    "nvram": 128 * _MIB,
    "kernel": 512 * _MIB,
    "initrd": 512 * _MIB,
    "dtb": 16 * _MIB,
    "tpm": 64 * _MIB,
}
_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class SavedFile:
    """A file as it was captured.

    ``size`` is in bytes, ``sha256`` in hex. ``pieces`` are their names, ``owner`` and ``group`` are names.
    """

    kind: str
    path: str
    size: int
    sha256: str
    pieces: tuple[str, ...]
    owner: str
    group: str
    mode: int


class FileChanges(CbtError):
    """A file is too large, or it changed during each attempt to read it."""


class Capture:
    """A machine's files at one moment.

    ``objects`` are those for a restore point: a function for each name, which loads the object. They are in an unnamed
    file in the directory ``folder``, which no other user can open. ``opened`` opens a file of the hypervisor by its
    path, as if it were of this host. ``warnings`` name what is missing.
    """

    def __init__(self, folder: str, opened: t.Callable[[str], t.BinaryIO] = open_file) -> None:
        self._opened = opened
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by ``close``
        self.objects: dict[str, t.Callable[[], bytes]] = {}
        self.warnings: list[str] = []

    def close(self) -> None:
        """Close and delete the unnamed file."""
        self._file.close()

    def take(self, found: t.Iterable[MachineFile]) -> None:
        """Capture the files that can be read, and an index of them."""
        saved = []
        for file in found:
            if file.unsaved is not None:
                self.warnings.append(f"{file.kind} of the machine was not saved: {file.unsaved}")
                continue
            try:
                saved.append(dataclasses.asdict(self._take(file)))
            except (OSError, FileChanges) as error:
                if isinstance(error, FileNotFoundError) and not file.certain:
                    continue
                why = error.strerror if isinstance(error, OSError) else str(error)
                self.warnings.append(f"{file.kind} of the machine was not saved: cannot read {file.path}: {why}.")
        if saved:
            self.add(INDEX, json.dumps({"files": saved}, sort_keys=True).encode())

    def add(self, name: str, data: bytes) -> None:
        """Add an object."""
        self.objects[name] = self._write(data)

    def _take(self, file: MachineFile) -> SavedFile:
        """Capture a file that QEMU may write to: repeat until two readings are equal."""
        start = self._file.seek(0, os.SEEK_END)
        for _attempt in range(_ATTEMPTS):
            self._file.truncate(start)
            pieces, size, digest = {}, 0, hashlib.sha256()
            with self._opened(file.path) as source:
                status = os.fstat(source.fileno())
                for number, piece in enumerate(_pieces(source, file.kind)):
                    digest.update(piece)
                    size += len(piece)
                    pieces[f"{file.kind}.{number}"] = self._write(zlib.compress(piece, 1))
            if self._digest(file) == digest.digest():
                self.objects.update(pieces)
                owner, group = _names(status)
                return SavedFile(
                    file.kind, file.path, size, digest.hexdigest(), tuple(pieces), owner, group, status.st_mode & 0o777
                )
        raise FileChanges("it keeps changing")

    def _digest(self, file: MachineFile) -> bytes:
        digest = hashlib.sha256()
        with self._opened(file.path) as source:
            for piece in _pieces(source, file.kind):
                digest.update(piece)
        return digest.digest()

    def _write(self, data: bytes) -> t.Callable[[], bytes]:
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        return functools.partial(self._load, offset, len(data))

    def _load(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)


def _pieces(source: t.BinaryIO, kind: str) -> t.Iterator[bytes]:
    """Yield a file in pieces. Raises FileChanges once it is too large; it may grow."""
    size = 0
    for piece in iter(lambda: source.read(PIECE), b""):
        size += len(piece)
        if size > LARGEST[kind]:
            raise FileChanges(f"it is larger than {LARGEST[kind] >> 20} MiB")
        yield piece


def _names(status: os.stat_result) -> tuple[str, str]:
    owner = group = ""
    with contextlib.suppress(KeyError):
        owner = pwd.getpwuid(status.st_uid).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(status.st_gid).gr_name
    return owner, group
