# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares restored disks with how definitions read them: a restored disk is plain, without encryption."""

from __future__ import annotations

import os
import typing as t

from ...errors import Refused
from ...hypervisor.connection import Domain, Session, explained, libvirt
from ...hypervisor.domain import located
from ...hypervisor.domain_xml import disk_kinds
from ...hypervisor.domain_xml.disks import Disk, parse_disks
from .plan import DiskRestore


def plain_texts(domain_xml: str, plans: t.Iterable[DiskRestore]) -> list[str]:
    """Return a warning for each disk that was encrypted."""
    encrypted = {disk.target for disk in parse_disks(domain_xml) if "encryption" in disk.layers}
    return [
        f"{plan.target} was encrypted, and {plan.path} has its content in plain text. Encrypt it again, or keep it on"
        " encrypted storage."
        for plan in plans
        if plan.target in encrypted
    ]


def check_readers(session: Session, plans: t.Sequence[DiskRestore], replaced: str | None) -> None:
    """Raise Refused if a domain could not read a restored disk at a path that its definition names.

    The same holds for a domain whose memory is saved to disk: when it continues, its guest would write what it knows of
    the previous content. ``replaced`` is the UUID of the domain that the restore defines; its definition will name the
    restored disks.
    """
    by_path = {os.path.realpath(plan.path): plan for plan in plans}
    for domain in session.domains():
        xml = domain.xml(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.uuid != replaced else None
        for disk in parse_disks(xml) if xml is not None else ():
            plan = by_path.get(os.path.realpath(located(session, disk).source or ""))
            if plan is not None:
                _check_reader(domain, disk, plan)


def _check_reader(domain: Domain, disk: Disk, plan: DiskRestore) -> None:
    what, why = f"Cannot restore {plan.target} to {plan.path}", _why_misread(disk, plan)
    if why is not None:
        raise Refused(
            f"{what}: {domain.name} could not read it, because its definition says that {why}. Restore to another"
            " path, or replace the domain with define: true."
        )
    with explained(f"look at the domain {domain.name}"):
        saved = domain.api.hasManagedSaveImage()
    if saved:
        raise Refused(
            f"{what}: the memory of {domain.name} is saved to disk, and would not match the restored disk. Restore to"
            f" another path, or discard the memory with virsh managedsave-remove {domain.name}."
        )


def _why_misread(disk: Disk, plan: DiskRestore) -> str | None:
    if disk.layers:
        return f"{disk.target} {disk_kinds.LAYERS[disk.layers[0]]}"
    if disk.format != plan.format:
        return f"{disk.target} is {disk.format}, not {plan.format} (set format: {disk.format})"
    return None
