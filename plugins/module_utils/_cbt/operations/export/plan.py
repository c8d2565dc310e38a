# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides which disks are exported, and where. Pure."""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t
from urllib.parse import quote

from ...errors import Refused
from ...hypervisor.domain_xml.disks import Selection
from ...repository.format.manifests import RestorePoint

LONGEST_SOCKET = 107  # bytes of the path of a Unix socket
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_LEAST_CACHE = 64 << 20


@dataclasses.dataclass(frozen=True)
class UnixAddress:
    """A folder for the Unix socket, and who may connect: user, group and mode of the socket."""

    folder: str
    owner: int
    group: int
    mode: int


@dataclasses.dataclass(frozen=True)
class TcpAddress:
    """A TCP address. ``certificates`` is the folder for TLS, None without."""

    address: str
    port: int
    certificates: str | None


Address = t.Union[UnixAddress, TcpAddress]


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where the server keeps what it may lose: private writes, and a cache of the repository of so many bytes.

    ``overlay`` is None if clients cannot write, ``cache`` is None without a cache.
    """

    overlay: str | None = None
    cache: str | None = None
    cache_size: int = 0


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """The options of an export, as documented in the module."""

    domain: str
    address: Address
    restore_point: str = "latest"
    until: str | None = None
    name: str | None = None
    selection: Selection = Selection()
    folders: Folders = Folders()

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.folders.cache is not None and self.folders.cache_size < _LEAST_CACHE:
            raise Refused(f"cache_size is {self.folders.cache_size}; it must be {_LEAST_CACHE >> 20} MiB or more.")
        for option, folder in (("overlay_dir", self.folders.overlay), ("cache_dir", self.folders.cache)):
            if folder is not None and not os.path.isabs(folder):
                raise Refused(f"{option} is {folder}; it must be an absolute path.")


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """An export, and how it is served. ``disks`` has the sizes in bytes by target."""

    name: str
    domain: str
    uuid: str
    restore_point: str
    repository: str
    location: str
    disks: t.Mapping[str, int]
    address: Address
    folders: Folders

    @property
    def purpose(self) -> str:
        """Return the purpose of the hold, by which the hold of an export is found from any host."""
        return purpose(self.name)

    @property
    def socket(self) -> str | None:
        """Return the path of its Unix socket."""
        return socket_path(self.address.folder, self.name) if isinstance(self.address, UnixAddress) else None

    def uri(self, target: str) -> str:
        """Return the NBD URI of a disk."""
        if self.socket is not None:
            return f"nbd+unix:///{quote(target)}?socket={quote(self.socket)}"
        address = t.cast(TcpAddress, self.address)
        host = f"[{address.address}]" if ":" in address.address else address.address
        return f"nbd{'s' if address.certificates else ''}://{host}:{address.port}/{quote(target)}"


def purpose(name: str) -> str:
    """Return the purpose of the hold of an export."""
    return f"export {name}"


def check_name(name: str) -> None:
    """Raise Refused if an export cannot have this name."""
    if not _NAME.fullmatch(name):
        raise Refused(
            f"{name} cannot be the name of an export. Use up to 100 letters, digits, dots, hyphens and underscores,"
            " beginning with a letter or digit."
        )


def default_name(point: RestorePoint) -> str:
    """Return the name of an export that the request does not name."""
    return f"{_UNSAFE.sub('-', point.domain).strip('-.')[:50] or point.uuid}-{point.id}".lstrip("_")


def socket_path(folder: str, name: str) -> str:
    """Return the path of the socket of an export."""
    return os.path.join(folder, f"{name}.sock")


def make_plan(point: RestorePoint, repository: str, location: str, request: ExportRequest) -> ExportPlan:
    """Decide what is served. Raises Refused if the request does not fit the restore point.

    ``repository`` is the id of the repository, which a copied restore point does not have.
    """
    known = {disk.target: disk.size for disk in point.disks}
    request.selection.check(list(known), f"Restore point {point.id} of {point.domain}")
    disks = {target: size for target, size in known.items() if request.selection.why_excluded(target) is None}
    if not disks:
        raise Refused(
            f"Restore point {point.id} of {point.domain} has no disk left to export. Check include_disks and"
            " exclude_disks."
        )
    name = request.name or default_name(point)
    _check_address(request.address, name)
    return ExportPlan(
        name,
        point.domain,
        point.uuid,
        point.id,
        repository,
        location,
        disks,
        request.address,
        request.folders,
    )


def _check_address(address: Address, name: str) -> None:
    if isinstance(address, TcpAddress):
        if not 1 <= address.port <= 65535:
            raise Refused(f"port is {address.port}; it must be between 1 and 65535.")
        return
    path = socket_path(address.folder, name)
    if not os.path.isabs(path):
        raise Refused(f"socket_dir is {address.folder}; it must be an absolute path.")
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        raise Refused(
            f"Cannot create the socket {path}: its path has {len(os.fsencode(path))} bytes, and the system allows"
            f" {LONGEST_SOCKET}. Set a shorter socket_dir or name."
        )


def check_same(there: ExportPlan, wanted: ExportPlan) -> None:
    """Raise Refused if the export that exists is not the one that is wanted."""
    differing = [
        field.name
        for field in dataclasses.fields(ExportPlan)
        if getattr(there, field.name) != getattr(wanted, field.name)
    ]
    if differing:
        raise Refused(
            f"The export {there.name} exists already, of restore point {there.restore_point} of {there.domain}, and"
            f" differs in {', '.join(differing)}. Choose another name, or end it first with state: absent."
        )
