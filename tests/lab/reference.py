# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading disks independently of the product, for comparison with what it restored."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from lab.base import Domain
from lab.errors import LabError
from lab.process import run_tool


def copy_exports(domain: Domain, folder: Path) -> dict[str, Path]:
    """Copy every export of the running pull-mode backup job with nbdcopy.

    Returns the raw file of each disk target, `folder/TARGET.raw`: the content at the time of
    the job's begin. LabError when no such job runs.
    """
    job = ElementTree.fromstring(domain.backup_xml() or "<none/>")
    server = job.find("server")
    if job.get("mode") != "pull" or server is None or server.get("transport") != "unix":
        raise LabError(f"{domain.name} runs no pull-mode backup job on a Unix socket")
    copies = {}
    for disk in job.iterfind("disks/disk[@backup='yes']"):
        target = disk.attrib["name"]
        copies[target] = folder / f"{target}.raw"
        _copy(server.attrib["socket"], disk.get("exportname", target), copies[target])
    return copies


def snapshot_reference(domain: Domain, folder: Path) -> dict[str, Path]:
    """Copy the disks of a running domain as they are at one moment, see `copy_exports`.

    Begins an own backup job without checkpoint and ends it; no job may run before.
    """
    job_folder = domain.hypervisor.folder()
    domain.handle.backupBegin(pull_job_xml(domain, job_folder), None, 0)
    try:
        return copy_exports(domain, folder)
    finally:
        domain.abort_job()


def pull_job_xml(domain: Domain, folder: Path, incremental: str | None = None) -> str:
    """XML of a pull-mode job over all writable disks.

    Socket and scratch files go to `folder`, which QEMU must be able to write; with
    `incremental` (a checkpoint) each export offers the bitmap of what changed since.
    """
    root = ElementTree.Element("domainbackup", mode="pull")
    if incremental is not None:
        ElementTree.SubElement(root, "incremental").text = incremental
    ElementTree.SubElement(root, "server", transport="unix", socket=str(folder / "socket"))
    disks = ElementTree.SubElement(root, "disks")
    for spec in domain.disks:
        if spec.readonly or spec.device == "cdrom":
            ElementTree.SubElement(disks, "disk", name=spec.target, backup="no")
            continue
        disk = ElementTree.SubElement(disks, "disk", name=spec.target, backup="yes", type="file")
        ElementTree.SubElement(disk, "scratch", file=str(folder / f"{spec.target}.scratch"))
    return ElementTree.tostring(root, encoding="unicode")


def same_bytes(first: Path, second: Path, first_format: str = "raw", second_format: str = "raw") -> str | None:
    """None when two closed images have the same size and content, else what differs."""
    sizes = _virtual_size(first, first_format), _virtual_size(second, second_format)
    if sizes[0] != sizes[1]:
        # qemu-img compare takes a longer image for equal when its rest is zero.
        return f"sizes differ: {sizes[0]} and {sizes[1]} bytes"
    try:
        run_tool(["qemu-img", "compare", "-f", first_format, "-F", second_format, first, second])
    except LabError as error:
        return str(error)
    return None


def _virtual_size(image: Path, image_format: str) -> int:
    answer = run_tool(["qemu-img", "info", "--output=json", "-f", image_format, image])
    return int(json.loads(answer)["virtual-size"])


def _copy(socket: str, export: str, destination: Path) -> None:
    query = urlencode({"socket": socket}, quote_via=quote)
    run_tool(["nbdcopy", f"nbd+unix:///{quote(export, safe='')}?{query}", destination])
