# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine's files beside its disks, in a restore point and out of it again. Private to the collection.

A file is kept in pieces of at most PIECE bytes, each compressed, so that neither side needs it in memory as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import hashlib
import json
import os
import pwd
import typing as t
import zlib

from ..errors import CbtError, DamagedObject, Refused
from ..hypervisor.machine_files import MachineFile
from ..repository.points import RestorePoint
from ..repository.repository import Repository

INDEX = "machine.json"
PIECE = 8 << 20
LARGEST = 512 << 20  # bytes
_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class SavedFile:
    """A file as it was: its kind and path, size in bytes, SHA-256 in hex, names of its pieces, owner and group by name, mode."""

    kind: str
    path: str
    size: int
    sha256: str
    pieces: t.Tuple[str, ...]
    owner: str
    group: str
    mode: int


class FileChanges(CbtError):
    """A file was written to whenever it was read."""


def _open_here(path: str) -> t.BinaryIO:
    return open(path, "rb")


class Capture(t.Mapping[str, bytes]):
    """A machine's files as they were at one moment, as objects for a restore point by name. They wait on disk, in ``folder``.

    ``opened`` opens a file of the hypervisor by its path, as if it were of this host. ``warnings`` tell what is missing.
    """

    def __init__(self, folder: str, opened: t.Callable[[str], t.BinaryIO] = _open_here) -> None:
        self._folder, self._opened = folder, opened
        self._names: t.List[str] = []
        self.warnings: t.List[str] = []

    def take(self, found: t.Iterable[MachineFile]) -> None:
        """Capture the files that can be read, and an index of them."""
        saved = []
        for file in found:
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
        self._write(name, data)
        self._names.append(name)

    def _take(self, file: MachineFile) -> SavedFile:
        """Capture a file of one moment: QEMU may write to it, so it is read until nothing changes under the reader."""
        for _attempt in range(_ATTEMPTS):
            pieces = []
            with self._opened(file.path) as source:
                status = os.fstat(source.fileno())
                if status.st_size > LARGEST:
                    raise FileChanges(f"it is larger than {LARGEST >> 20} MiB")
                digest = hashlib.sha256()
                for number, piece in enumerate(iter(lambda: source.read(PIECE), b"")):
                    digest.update(piece)
                    pieces.append(f"{file.kind}.{number}")
                    self._write(pieces[-1], zlib.compress(piece, 1))
                size = source.tell()
            if self._digest(file.path) == digest.digest():
                self._names += pieces
                owner, group = _names(status)
                return SavedFile(file.kind, file.path, size, digest.hexdigest(), tuple(pieces), owner, group, status.st_mode & 0o777)
        raise FileChanges("it changes all the time")

    def _digest(self, path: str) -> bytes:
        digest = hashlib.sha256()
        with self._opened(path) as source:
            for piece in iter(lambda: source.read(PIECE), b""):
                digest.update(piece)
        return digest.digest()

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, f"captured-{name}")

    def _write(self, name: str, data: bytes) -> None:
        handle = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            file.write(data)

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        with open(self._path(name), "rb") as file:
            return file.read()

    def __iter__(self) -> t.Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _names(status: os.stat_result) -> t.Tuple[str, str]:
    owner = group = ""
    with contextlib.suppress(KeyError):
        owner = pwd.getpwuid(status.st_uid).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(status.st_gid).gr_name
    return owner, group


def saved_files(repository: Repository, point: RestorePoint) -> t.List[SavedFile]:
    """The machine's files a restore point holds. Raises DamagedObject or ObjectMissing."""
    if INDEX not in point.files:
        return []
    body = json.loads(repository.get_file(point, point.files[INDEX]))
    return [SavedFile(**{**each, "pieces": tuple(each["pieces"])}) for each in body["files"]]


def write_file(repository: Repository, point: RestorePoint, saved: SavedFile, path: str) -> None:
    """Write a saved file to ``path``, which must not exist, and prove it. It gets mode and owner it had, where the owner is known here.

    Raises DamagedObject, ObjectMissing, or Refused if it cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            for name in saved.pieces:
                data = _inflated(repository.get_file(point, point.files[name]), f"{point.folder}/{name}")
                digest.update(data)
                size += len(data)
                file.write(data)
            if (size, digest.hexdigest()) != (saved.size, saved.sha256):
                raise DamagedObject(f"{saved.kind} of restore point {point.id} is damaged: its pieces are not what was saved")
            file.flush()
            os.fsync(handle)
            _own(handle, saved)
    except OSError as error:
        raise Refused(f"Cannot write {path}: {error.strerror}.") from error


def _inflated(data: bytes, name: str) -> bytes:
    engine = zlib.decompressobj()
    try:
        piece = engine.decompress(data, PIECE)
        whole = not engine.decompress(engine.unconsumed_tail, 1) and engine.eof
    except zlib.error as error:
        raise DamagedObject(f"{name} is damaged: it does not decompress") from error
    if not whole:
        raise DamagedObject(f"{name} is damaged: it is not one piece")
    return piece


def _own(handle: int, saved: SavedFile) -> None:
    os.fchmod(handle, saved.mode)
    try:
        os.fchown(handle, pwd.getpwnam(saved.owner).pw_uid, grp.getgrnam(saved.group).gr_gid)
    except (KeyError, PermissionError):
        return  # libvirt makes most of them QEMU's own when the domain starts
