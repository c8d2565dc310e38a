# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides which disks of a shut-off domain another host may have open.

A domain that is shut off here may run on another host. QEMU's locks then protect image files that all hosts share, but
no block devices, because each host has a device node of its own.
"""

from __future__ import annotations

import dataclasses
import socket

from ..errors import Refused
from ..images import locks
from .connection import Session
from .domain import DomainFacts
from .domain_xml.disks import Disk, Selection


@dataclasses.dataclass(frozen=True)
class OtherHosts:
    """What is known of the other hosts that may run a domain.

    ``answered`` reported that they do not run it, ``silent`` did not report. ``confirmed`` is whether the user said
    that no other host runs it.
    """

    answered: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    confirmed: bool = False


def host_name(session: Session) -> str:
    """Return the name of the session's host, as restore points record it."""
    return socket.gethostname() if session.remote_host is None else str(session.api.getHostname())


def _locked(disk: Disk, facts: DomainFacts) -> bool:
    """Whether each host that opens the disk sees the locks of the others, or no host writes to it."""
    path = disk.source
    if disk.readonly or (path is None and disk.type in ("file", "block")):
        return True
    if disk.type != "file" or path is None:
        return False
    return locks.shared(path) if facts.host is None else not path.startswith("/dev/")


def withheld(
    facts: DomainFacts, others: OtherHosts, here: str, last: str | None = None, selection: Selection | None = None
) -> DomainFacts:
    """Return the facts with the reason at each disk that must not be opened, because another host may have it open.

    ``last`` is the host of the domain's last restore point, if known. ``selection`` selects the disks to open; with
    None, all of them are opened together. Raises Refused if no other host was queried, and ``last`` is not this one.
    """
    if facts.active or others.confirmed:
        return facts
    open_to_all = [
        disk.target
        for disk in facts.disks
        if not _locked(disk, facts)
        and (selection is None or (selection.why_excluded(disk.target) or disk.why_unreadable) is None)
    ]
    silent = list(others.silent)
    if last is not None and last not in (here, *others.answered, *others.silent):
        silent.append(last)
    if not (silent and open_to_all):
        return facts
    named, missing = ", ".join(open_to_all), ", ".join(silent)
    reason = (
        f"{named} of {facts.name} may be in use on another host: {facts.name} is shut off on {here}, {missing} did"
        f" not report whether it runs there, and image locks on {named} do not reach other hosts."
    )
    if not (others.answered or others.silent):
        raise Refused(
            f"Cannot open the disks of {facts.name}: {reason} Make sure that it runs on no other host and set"
            " offline_confirmed: true, or list the hosts in cbt_cluster."
        )
    reason += (
        f" Nothing of {named} was read or changed. Run it again when {missing} can be reached, or set"
        f" offline_confirmed: true if {facts.name} runs on no other host."
    )
    left_out = open_to_all if selection is not None else [disk.target for disk in facts.disks]
    disks = [dataclasses.replace(disk, withheld=reason) if disk.target in left_out else disk for disk in facts.disks]
    return dataclasses.replace(facts, disks=tuple(disks))


def why_withheld(facts: DomainFacts) -> str | None:
    """Return why disks of the domain are withheld; None if none is."""
    return next((disk.withheld for disk in facts.disks if disk.withheld), None)
