# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accesses folders and files of another host, through storage pools of type dir."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import typing as t
from xml.etree import ElementTree

from ..errors import HypervisorError
from . import free_space
from .connection import Session, explained, libvirt


def _xml(name: str, path: str) -> str:
    root = ElementTree.Element("pool", type="dir")
    ElementTree.SubElement(root, "name").text = name
    target = ElementTree.SubElement(root, "target")
    ElementTree.SubElement(target, "path").text = path
    permissions = ElementTree.SubElement(target, "permissions")
    ElementTree.SubElement(permissions, "mode").text = "0711"
    return ElementTree.tostring(root, encoding="unicode")


def make(session: Session, name: str, path: str) -> None:
    """Create a folder and a pool over it. Raises libvirtError.

    Users other than libvirt's cannot list the folder: they can open only files whose names they know.
    """
    # Defined, not only created: libvirt removes only a defined pool's folder, and a killed run's pool can be found.
    pool = session.api.storagePoolDefineXML(_xml(name, path))
    pool.build(0)
    pool.create(0)


def measure(session: Session, name: str) -> free_space.Usage:
    """Return the space of the file system of a pool's folder. Raises HypervisorError."""
    with explained(f"ask for the free space of pool {name}"):
        pool = session.api.storagePoolLookupByName(name)
        pool.refresh(0)
        _state, total, _used, free = pool.info()
    return free_space.Usage(free, total)


def names(session: Session) -> list[str]:
    """Return the names of all pools. Raises HypervisorError."""
    with explained("list the storage pools"):
        return [pool.name() for pool in session.api.listAllStoragePools(0)]


def remove(session: Session, name: str) -> None:
    """Remove a pool with its folder and content, as far as they exist."""
    with contextlib.suppress(libvirt.libvirtError, HypervisorError):
        pool = session.api.storagePoolLookupByName(name)
        with contextlib.suppress(libvirt.libvirtError):
            pool.refresh(0)
            for volume in pool.listAllVolumes(0):
                volume.delete(0)
        for step in (pool.destroy, pool.delete, pool.undefine):
            with contextlib.suppress(libvirt.libvirtError):
                step()


@contextlib.contextmanager
def _over(session: Session, folder: str) -> t.Iterator[t.Any]:
    """Yield a refreshed pool over an existing folder. Raises libvirtError.

    Uses the pool of this folder if there is one, else a temporary pool.
    """
    try:
        pool, ours = session.api.storagePoolLookupByTargetPath(folder), False
    except libvirt.libvirtError:
        pool, ours = session.api.storagePoolCreateXML(_xml(f"kvm-cbt-look-{secrets.token_hex(4)}", folder)), True
    try:
        pool.refresh(0)
        yield pool
    finally:
        if ours:
            pool.destroy()


def has_file(session: Session, path: str) -> bool:
    """Whether the file exists on libvirt's host.

    Raises HypervisorError if its folder does not exist, or if libvirt cannot list the folder.
    """
    folder, name = os.path.split(path)
    with explained(f"look into {folder} on libvirt's host"), _over(session, folder) as pool:
        return name in pool.listVolumes()


def exists(session: Session, path: str) -> bool:
    """Whether a path exists on libvirt's host.

    On another host, devices cannot be checked and count as missing, as do paths that libvirt cannot read.
    """
    if session.remote_host is None:
        return os.path.exists(path)
    with contextlib.suppress(HypervisorError):
        return os.path.isabs(path) and not path.startswith("/dev/") and has_file(session, path)
    return False


def open_file(session: Session, most: int, path: str) -> t.BinaryIO:
    """Return a copy of a file of libvirt's host, cut after ``most`` + 1 bytes.

    Raises FileNotFoundError if there is no such file, OSError if it cannot be read.
    """
    folder, name = os.path.split(path)
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    try:
        with _over(session, folder) as pool:
            stream = session.api.newStream(0)
            pool.storageVolLookupByName(name).download(stream, 0, most + 1, 0)
            stream.recvAll(lambda _stream, data, _opaque: copy.write(data), None)
            stream.finish()
    except libvirt.libvirtError as error:
        copy.close()
        missing = error.get_error_code() in (libvirt.VIR_ERR_NO_STORAGE_VOL, libvirt.VIR_ERR_NO_STORAGE_POOL)
        raise (FileNotFoundError if missing else OSError)(0, str(error)) from error
    copy.seek(0)
    return t.cast(t.BinaryIO, copy)
