# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describes, creates, converts and compares image files."""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
import typing as t

from .. import files, programs
from ..errors import HypervisorError, ProgramError
from . import locks, qemu_img

_HEADER = struct.Struct(">4sIQI")  # magic, version, offset and length of the backing file's name
_LONGEST_CHAIN = 256
_LONGEST_NAME = 1023  # bytes, QEMU's limit for the name of a backing file


@dataclasses.dataclass(frozen=True)
class Image:
    """An image file or device. ``size`` is the virtual size in bytes.

    ``backing`` is the backing file as the image names it, ``backing_path`` its full path.
    """

    path: str
    format: str
    size: int
    compat: str | None
    cluster_size: int | None
    backing: str | None
    backing_path: str | None
    backing_format: str | None
    snapshots: bool
    encrypted: bool
    data_file: bool

    @property
    def trackable(self) -> bool:
        """Whether the image can hold dirty bitmaps."""
        return self.format == "qcow2" and self.compat != "0.10"


def describe(path: str, fmt: str) -> Image:
    """Describe an image, even while a domain uses it.

    ``fmt`` is the format that the definition names. Raises HypervisorError if the image cannot be read.
    """
    try:
        info = qemu_img.info(path, fmt)
    except ProgramError as error:
        raise HypervisorError(f"Cannot read the {fmt} image {path}: {error}. Check the path and the format.") from error
    details = info.get("format-specific", {}).get("data", {})
    return Image(
        path=path,
        format=info["format"],
        size=info["virtual-size"],
        compat=details.get("compat"),
        cluster_size=info.get("cluster-size") if info["format"] == "qcow2" else None,
        backing=info.get("backing-filename"),
        backing_path=info.get("full-backing-filename"),
        backing_format=info.get("backing-filename-format"),
        snapshots=bool(info.get("snapshots")),
        encrypted=bool(info.get("encrypted")),
        data_file="data-file" in details,
    )


def needed(image: Image) -> int:
    """Estimate the bytes of a qcow2 copy: a guest may write during the measurement."""
    measured = programs.run_json(
        ["qemu-img", "measure", "-U", "--output=json", "-O", "qcow2", "-f", image.format, image.path]
    )
    return t.cast(int, measured["required"])


def _options(image: Image, dest: str, backing_option: str) -> list[str]:
    """Return the options for a qcow2 v3 image ``dest`` with the clusters and the backing file of ``image``."""
    cluster = f",cluster_size={image.cluster_size}" if image.cluster_size else ""
    options = ["-o", f"compat=1.1{cluster}"]
    if image.backing is None:
        return options
    # A relative name is relative to the folder of the image that holds it.
    beside = os.path.dirname(os.path.realpath(image.path)) == os.path.dirname(os.path.realpath(dest))
    return [
        *options,
        backing_option,
        image.backing if beside else (image.backing_path or image.backing),
        "-F",
        image.backing_format or "raw",
    ]


def create_like(image: Image, dest: str) -> None:
    """Create an empty qcow2 v3 image with the size, clusters and backing of another."""
    programs.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            *_options(image, dest, "-b"),
            "--",
            dest,
            str(image.size),
        ]
    )
    take_owner(image.path, dest)


def convert(image: Image, dest: str, watch: t.Callable[[], None]) -> None:
    """Copy an unused image to a new qcow2 v3 image.

    Raises HypervisorError, Refused if the image is in use, or the exception of ``watch``.
    """
    locks.require_free(image.path, f"convert {image.path}")
    copying = [
        "qemu-img",
        "convert",
        "-q",
        "-f",
        image.format,
        "-O",
        "qcow2",
        *_options(image, dest, "-B"),
        "--",
        image.path,
        dest,
    ]
    _complete(copying, watch, f"convert {image.path}")
    take_owner(image.path, dest)
    files.sync(dest)


def compare(image: Image, copy: str, watch: t.Callable[[], None]) -> None:
    """Raise HypervisorError unless the qcow2 image ``copy`` has the same content.

    An exception of ``watch`` passes through.
    """
    comparing = ["qemu-img", "compare", "-q", "-f", image.format, "-F", "qcow2", "--", image.path, copy]
    _complete(comparing, watch, f"use {copy}: its content differs from that of {image.path}")


def _complete(arguments: t.Sequence[str], watch: t.Callable[[], None], what: str) -> None:
    with programs.service(arguments) as running:
        status, said = running.complete(watch)
    if status != 0:
        raise HypervisorError(
            f"Cannot {what}: {arguments[0]} {arguments[1]} ended with {status}{': ' if said else ''}{said}"
        )


def set_compat(path: str, version: str) -> None:
    """Change the version of an unused qcow2 image: ``1.1`` is v3, ``0.10`` is v2."""
    try:
        programs.run(["qemu-img", "amend", "-f", "qcow2", "-o", f"compat={version}", "--", path])
    except ProgramError as error:
        raise HypervisorError(
            f"Cannot make {path} a qcow2 image of compat {version}: {error}. If a domain uses it, shut that down."
        ) from error


def check(path: str) -> None:
    """Raise HypervisorError if ``qemu-img check`` finds errors in an unused image."""
    try:
        programs.run(["qemu-img", "check", "-q", "-f", "qcow2", "--", path])
    except ProgramError as error:
        raise HypervisorError(f"The image {path} is damaged: {error}") from error


def take_owner(path: str, other: str) -> None:
    """Set owner (as root) and mode of the new file ``other`` to those of ``path``.

    Raises HypervisorError if ``other`` is not the file that this process created: other users may write to the folder.
    """
    status = os.stat(path)
    try:
        handle = os.open(other, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise HypervisorError(
            f"Cannot continue with the new image {other}: {error.strerror}. Check whether another user replaced it."
        ) from error
    try:
        made = os.fstat(handle)
        if not stat.S_ISREG(made.st_mode) or made.st_nlink != 1 or made.st_uid != os.geteuid():
            raise HypervisorError(
                f"Cannot continue with the new image {other}: another user replaced it. Make root the owner of its"
                " folder."
            )
        os.fchmod(handle, status.st_mode & 0o777)
        if os.geteuid() == 0:
            os.fchown(handle, status.st_uid, status.st_gid)
    finally:
        os.close(handle)


def _named_backing(path: str) -> str | None:
    """Return the backing file from a qcow2 header, which a guest may have written.

    Returns None if there is no such header, or if it names no backing file.
    """
    try:
        # The guest's name is opened next. It may be a pipe, on which open() would block, or a device that open()
        # changes.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            magic, _version, offset, length = _HEADER.unpack(header)
            if magic != qemu_img.MAGIC or not offset or length > _LONGEST_NAME:
                return None
            file.seek(offset)
            name = file.read(length)
    except (OSError, OverflowError, ValueError):  # an offset beyond the maximum file size is a ValueError
        return None
    return None if b"\0" in name else os.path.join(os.path.dirname(os.path.realpath(path)), os.fsdecode(name))


def _rests_on(path: str, base: str) -> bool:
    """Whether ``base`` is among the backing files of an image. Both are real paths."""
    for _step in range(_LONGEST_CHAIN):
        below = _named_backing(path)
        if below is None:
            return False
        path = os.path.realpath(below)
        if path == base:
            return True
    return False


def dependents(sources: t.Iterable[str], image: str) -> list[str]:
    """Return the images that have ``image`` among their backing files.

    Checks ``sources``, the disks of domains, and the files in the folder of ``image``.
    """
    base = os.path.realpath(image)
    found = {entry.path for entry in os.scandir(os.path.dirname(base))}
    found.update(os.path.realpath(source) for source in sources)
    return sorted(path for path in found if path != base and _rests_on(path, base))
