# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves the disk images of a shut-off domain over NBD."""

from __future__ import annotations

import contextlib
import json
import os
import time
import typing as t

from .. import programs
from ..endpoint import Export
from ..errors import HypervisorError, ProgramError, Refused
from ..images import qemu_img
from .backup_job import Wanted
from .connection import explained
from .domain import DomainFacts
from .domain_xml import disk_kinds
from .domain_xml.disks import Disk

_START_WITHIN = 60  # seconds


def _why_not_offline(disk: Disk) -> str | None:
    """Return why a disk cannot be read while its domain is off; None if it can."""
    kind = disk_kinds.SOURCES.get(disk.type)
    layer = next((disk_kinds.LAYERS[layer] for layer in disk.layers), None)
    if layer is None and disk.type == "volume":
        return (
            f"{disk.target} is the volume {disk.source}, which libvirt does not find as a file or device. Start its"
            " pool with virsh pool-start, or set offline to start_paused."
        )
    if layer is None and (kind is None or not kind.shut_off):
        layer = f"is a {disk.type} disk"
    elif layer is None and (disk.source is None or not os.path.exists(disk.source)):
        return f"{disk.target} has no image at {disk.source}. Put it back, or leave the disk out with exclude_disks."
    elif layer is None and not _has_named_backing(disk):
        layer = "has a different backing chain in its definition than in its image"
    if layer is None:
        return None
    return f"{disk.target} {layer}, so it is read through a running domain only. Set offline to start_paused."


def _has_named_backing(disk: Disk) -> bool:
    """Whether the backing files in the image are those in the definition, as far as it names them."""
    if not disk.backing:
        return True
    links = [(link.format, os.path.realpath(link.path)) for link in qemu_img.chain(disk.source or "", disk.format)[1:]]
    named = [(fmt, os.path.realpath(path) if path else "") for fmt, path in disk.backing]
    return [*links, ("", "")][: len(named)] == named


def require_images(facts: DomainFacts, targets: t.Collection[str]) -> None:
    """Raise Refused, with advice, if one of the disks cannot be read while the domain is off."""
    with explained(f"read the disks of {facts.name}", "Check that its images are intact."):
        for disk in facts.disks:
            reason = _why_not_offline(disk) if disk.target in targets else None
            if reason is not None:
                raise Refused(f"Cannot read {facts.name} while it is shut off: {reason}")


def _node(disk: Disk) -> dict[str, t.Any]:
    path = disk.source or ""
    file = qemu_img.file_node(path)
    if disk.format == "raw":
        # Drivers of other formats deny writers access to their metadata. Without blkdebug, the domain could start and
        # write to an exported RAW image.
        file = {"driver": "blkdebug", "image": file, "unshare-child-perms": ["write", "resize"]}
    below = qemu_img.below(path, disk.format)
    node = {"driver": disk.format, "node-name": disk.target, "read-only": True, "file": file}
    return node if below is None else {**node, "backing": below}


def _arguments(disks: t.Sequence[Disk], wanted: Wanted, socket: str, ready: str) -> list[str]:
    address = socket.replace(",", ",,")  # QEMU's options write a comma as two
    arguments = ["qemu-storage-daemon", "--pidfile", ready, "--nbd-server", f"addr.type=unix,addr.path={address}"]
    for disk in disks:
        arguments += ["--blockdev", json.dumps(_node(disk))]
        export: dict[str, t.Any] = {
            "type": "nbd",
            "id": disk.target,
            "node-name": disk.target,
            "name": disk.target,
            "writable": False,
        }
        since = wanted[disk.target]
        if since is not None:
            export["bitmaps"] = [since]
        arguments += ["--export", json.dumps(export)]
    return arguments


@contextlib.contextmanager
def image_exports(facts: DomainFacts, wanted: Wanted, folder: str) -> t.Iterator[tuple[Export, ...]]:
    """Serve the images of a shut-off domain over NBD, read-only, during the block.

    The domain cannot be started until the block ends. Raises Refused if a disk cannot be read while the domain is off,
    HypervisorError if an image cannot be opened, for example because the domain has been started.
    """
    require_images(facts, wanted)
    disks = [disk for disk in facts.disks if disk.target in wanted]
    socket = os.path.join(folder, "nbd.sock")
    ready = os.path.join(folder, "nbd.pid")  # QEMU writes it once all images are open and the socket exists
    try:
        arguments = _arguments(disks, wanted, socket, ready)
    except (OSError, ProgramError) as error:
        raise HypervisorError(
            f"Cannot read the disks of {facts.name}: {error}. Check that its images are intact."
        ) from error
    with programs.service(arguments) as server:
        _wait_for(ready, server, facts.name)
        yield tuple(
            Export(target, socket, f"qemu:dirty-bitmap:{since}" if since else None) for target, since in wanted.items()
        )
        with contextlib.suppress(ProgramError):  # the server only read, so its errors do not matter
            server.stop(_START_WITHIN)


def _wait_for(ready: str, server: programs.Service, name: str) -> None:
    deadline = time.monotonic() + _START_WITHIN
    while not os.path.exists(ready):
        reason = server.failed()
        if reason is not None and "lock" in reason:
            raise HypervisorError(
                f"Cannot read the disks of {name}: an image is in use by another process ({reason}). It may have been"
                " started. Try again."
            )
        if reason is not None or time.monotonic() > deadline:
            raise HypervisorError(
                f"Cannot read the disks of {name}: {reason or 'qemu-storage-daemon did not open the images in time'}."
            )
        time.sleep(0.01)
