# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads and verifies the configuration and files of a machine in a restore point.

Anyone who can write to a plain repository decides what is in it. So nothing in it is trusted: each name must match the
grammar, and each size and number has a limit that is known before the data is read or written. Anything else raises
DamagedObject, which names the object.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import struct
import typing as t
import zlib
from xml.parsers import expat

from ...errors import DamagedObject, Refused
from ...images.qemu_img import MAGIC
from ...repository.format import envelope, names
from ...repository.format.manifests import RestorePoint
from ...repository.repository import Repository
from ..point.machine_files import INDEX, LARGEST, PIECE, SavedFile

_LARGEST_XML = 4 << 20  # bytes, libvirt's limit
_LARGEST_INDEX = 1 << 18
_LARGEST_PIECE = PIECE + (1 << 16)  # zlib adds a few bytes to incompressible data
_SHORT_PIECES = 16  # a file that grew during the backup has more pieces than its size requires
_DEEPEST_XML = 512  # nested elements; a chain of 200 backing stores is deep
_LONGEST = {"path": 4096, "owner": 255, "group": 255, "sha256": 64}  # characters
_QCOW2 = struct.Struct(">4sIQ56xQ")  # magic, version, offset of the backing file's name, incompatible features
_DATA_FILE = 1 << 2
_MODE = 0o755  # neither setuid, nor write permission for other accounts


def _small_file(repository: Repository, point: RestorePoint, key: str, largest: int) -> bytes:
    """Return a file of a restore point. Its size in the manifest is checked first.

    Raises DamagedObject or ObjectMissing.
    """
    stored = point.files.get(key)
    if stored is None:
        raise DamagedObject(f"{point.folder} is damaged: its manifest names no {key}. Choose another restore point.")
    if stored.size > largest:
        raise DamagedObject(
            f"{point.folder}/{stored.name} is damaged: it cannot be of {stored.size} bytes. Choose another restore"
            " point."
        )
    return repository.get_file(point, stored)


def configuration(repository: Repository, point: RestorePoint, key: str) -> str:
    """Return a domain's XML.

    Raises ObjectMissing, or DamagedObject if it is not well-formed, declares a document type or is nested too deep.
    """
    data = _small_file(repository, point, key, _LARGEST_XML)
    try:
        text = data.decode()
        _check_xml(data)
    except (expat.ExpatError, ValueError) as error:
        raise DamagedObject(
            f"{point.folder}/{key} is damaged: it is not the XML of a domain ({error}). Choose another restore point."
        ) from error
    return text


def _check_xml(data: bytes) -> None:
    """Raise ExpatError, or ValueError for XML that libvirt never writes."""
    parser = expat.ParserCreate("utf-8")
    opened: list[str] = []

    def begin(tag: str, _attributes: t.Mapping[str, str]) -> None:
        if not opened and tag != "domain":
            raise ValueError(f"its outermost element is {names.shown(tag)}")
        opened.append(tag)
        if len(opened) > _DEEPEST_XML:
            raise ValueError("its elements are nested too deep")

    def refuse(*_declaration: t.Any) -> None:
        raise ValueError("it declares a document type")

    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _tag: opened.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)


def saved_files(repository: Repository, point: RestorePoint) -> list[SavedFile]:
    """Return the machine's files in a restore point. Raises DamagedObject or ObjectMissing."""
    if INDEX not in point.files:
        return []
    data = _small_file(repository, point, INDEX, _LARGEST_INDEX)
    try:
        body: t.Any = envelope.parsed(data)
        if not isinstance(body, dict) or not envelope.fits(body.get("files"), list[SavedFile]):
            raise ValueError(
                "it holds no list of a machine's files, or a field of a file is missing or of a wrong type"
            )
        files = [_saved(each, point) for each in body["files"]]
    except ValueError as error:
        raise DamagedObject(
            f"{point.folder}/{INDEX} is damaged: {error}. Choose another restore point, or restore without define."
        ) from error
    if len({file.kind for file in files}) < len(files):
        raise DamagedObject(
            f"{point.folder}/{INDEX} is damaged: it names a kind of file twice. Choose another restore point, or"
            " restore without define."
        )
    return files


def _saved(entry: t.Mapping[str, t.Any], point: RestorePoint) -> SavedFile:
    """Return an entry of the index, whose fields have the right types.

    Raises ValueError unless all fields are valid and the manifest has all pieces.
    """
    kind, size, pieces = entry["kind"], entry["size"], entry["pieces"]
    if kind not in names.MACHINE_FILE_KINDS:
        raise ValueError(f"{names.shown(kind)} is not a kind of machine file")
    if not 0 <= size <= LARGEST[kind] or not 0 <= entry["mode"] <= 0o7777:
        raise ValueError(f"the size or mode of its {kind} is not valid")
    for field, longest in _LONGEST.items():
        if len(entry[field]) > longest or "\0" in entry[field]:
            raise ValueError(f"the {field} of its {kind} is not valid")
    if len(pieces) > -(-size // PIECE) + _SHORT_PIECES:
        raise ValueError(f"the pieces of its {kind} are not those of {size} bytes")
    if pieces != [f"{kind}.{number}" for number in range(len(pieces))]:
        raise ValueError(f"the pieces of its {kind} have other names than they were stored under")
    if any(piece not in point.files for piece in pieces):
        raise ValueError(f"the manifest lacks a piece of its {kind}")
    fields = {field: entry[field] for field in envelope.shape_of(SavedFile)}
    return SavedFile(**{**fields, "pieces": tuple(pieces)})


def write_file(repository: Repository, point: RestorePoint, saved: SavedFile, path: str) -> list[str]:
    """Write a saved file to ``path``, which must not exist, and verify it.

    It gets its mode without unsafe bits and, as root, its owner. Returns warnings about unknown owners. Raises
    DamagedObject, ObjectMissing, or Refused if it cannot be written.
    """
    digest, left = hashlib.sha256(), saved.size
    damage = DamagedObject(
        f"{saved.kind} of restore point {point.id} is damaged: its pieces do not match what was saved"
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            for name in saved.pieces:
                data = _inflated(_small_file(repository, point, name, _LARGEST_PIECE), f"{point.folder}/{name}")
                if not 0 < len(data) <= left:
                    raise damage
                left -= len(data)
                digest.update(data)
                file.write(data)
            if left or digest.hexdigest() != saved.sha256:
                raise damage
            file.flush()
            os.fsync(handle)
            return _own(handle, saved, path)
    except OSError as error:
        raise Refused(f"Cannot write {path}: {error.strerror}.") from error


def names_other_files(repository: Repository, point: RestorePoint, saved: SavedFile) -> bool:
    """Whether a saved file is a qcow2 image with a backing file or a data file, which QEMU would open.

    Raises DamagedObject or ObjectMissing.
    """
    head = b""
    for name in saved.pieces:  # the first ones may be short
        head += _inflated(_small_file(repository, point, name, _LARGEST_PIECE), name)
        if len(head) >= _QCOW2.size:
            break
    magic, version, backing, features = _QCOW2.unpack(head[: _QCOW2.size].ljust(_QCOW2.size, b"\0"))
    return bool(magic == MAGIC and (backing or (version > 2 and features & _DATA_FILE)))


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


def _own(handle: int, saved: SavedFile, path: str) -> list[str]:
    owner, group = account_of(saved.owner), group_of(saved.group)
    try:
        os.fchmod(handle, saved.mode & _MODE)
        if os.geteuid() != 0:
            return []  # libvirt gives most of them to QEMU's user when the domain starts
        os.fchown(handle, owner, group)
    except OSError as error:  # such as on an SMB share
        return [f"Cannot set owner and mode of {path}: {error.strerror}. Check whether QEMU may access it."]
    unknown = [
        f"{what} {names.shown(name)}"
        for what, name, found in (("user", saved.owner, owner), ("group", saved.group, group))
        if name and found < 0
    ]
    return (
        [f"{saved.kind} of the machine belongs to root: this host has no {' and no '.join(unknown)}."]
        if unknown
        else []
    )


def account_of(name: str) -> int:
    """Return the number of a user; -1, which changes no owner, if this host has no such user."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return -1


def group_of(name: str) -> int:
    """Return the number of a group; -1, which changes no group, if this host has no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return -1
