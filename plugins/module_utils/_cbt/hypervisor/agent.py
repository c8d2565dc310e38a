# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freezes (quiesces) the guest's file systems through the guest agent, and thaws them."""

from __future__ import annotations

import contextlib
import typing as t
from xml.etree import ElementTree

from ..errors import HypervisorError, Refused
from .connection import Domain, libvirt
from .domain import DomainFacts

ANSWER_WITHIN = 30  # seconds: an agent that hangs must delay neither the backup nor the guest

FILESYSTEM = "filesystem"
CRASH = "crash"


class Quiesce(t.NamedTuple):
    """The result of a freeze: ``consistency`` is filesystem or crash.

    ``note`` is why it is only crash although a freeze was expected, else None.
    """

    consistency: str
    note: str | None


def why_not_quiesced(facts: DomainFacts) -> str | None:
    """Return why the guest's file systems cannot be frozen now; None if an agent is connected."""
    if not facts.active:
        return f"the domain is {facts.state}"
    if facts.state == "paused":
        return "the domain is paused, so its agent cannot answer"
    if not any(channel.get("state") == "connected" for channel in _channels(facts.xml)):
        return "no guest agent is connected"
    return None


def require(facts: DomainFacts) -> None:
    """Raise Refused if the guest's file systems cannot be frozen."""
    reason = why_not_quiesced(facts)
    if reason is not None:
        raise Refused(
            f"Cannot freeze the file systems of {facts.name}: {reason}. Check that it runs with a channel for"
            " qemu-guest-agent and that the agent runs in the guest, or set quiesce to auto."
        )


def _thaw(domain: Domain, frozen: bool) -> None:
    try:
        domain.api.fsThaw()
    except libvirt.libvirtError as error:
        if frozen:
            raise HypervisorError(
                f"Cannot thaw the file systems of {domain.name}: {error}. The guest may still be frozen: run virsh"
                f" domfsthaw {domain.name}."
            ) from error


@contextlib.contextmanager
def quiesced(domain: Domain, facts: DomainFacts, policy: str, mountpoints: t.Sequence[str]) -> t.Iterator[Quiesce]:
    """Freeze the guest's file systems for the block, and always thaw them afterwards.

    ``policy`` is auto (freeze if the agent answers), required or never. ``mountpoints`` limits the freeze to these file
    systems; empty for all. Raises HypervisorError if a required freeze fails, which ``require`` foresees, or if the
    guest cannot be thawed.
    """
    reason = why_not_quiesced(facts) if policy == "auto" else None
    if policy == "never" or reason is not None:
        # Without an agent's channel no freeze is expected. A note would repeat in every backup and ask for nothing.
        yield Quiesce(CRASH, reason if _channels(facts.xml) and facts.state != "paused" else None)
        return
    frozen, failure = False, None
    try:
        try:
            domain.api.agentSetResponseTimeout(ANSWER_WITHIN, 0)
            count = domain.api.fsFreeze(list(mountpoints) or None, 0)
            frozen = True
            # An agent that knows none of the mount points reports success, with no file systems frozen.
            if count < max(1, len(mountpoints)):
                failure = f"the agent froze {count} file systems" + (
                    f" of {', '.join(mountpoints)}" if mountpoints else ""
                )
        except libvirt.libvirtError as error:
            failure = str(error)
        if failure is None:
            yield Quiesce(FILESYSTEM, None)
        elif policy == "required":
            raise HypervisorError(
                f"Cannot freeze the file systems of {facts.name}: {failure}. Check qemu-guest-agent in the guest, or"
                " set quiesce to auto."
            )
        else:
            yield Quiesce(CRASH, f"the file systems were not frozen: {failure}")
    finally:
        # Also after a failed freeze: the agent may have frozen the guest although its answer was lost.
        _thaw(domain, frozen)
        with contextlib.suppress(libvirt.libvirtError):
            domain.api.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)


def guest_information(domain: Domain, facts: DomainFacts) -> dict[str, t.Any]:
    """Return the agent's information about the guest; empty if it does not answer.

    It includes operating system, hostname, file systems and time zone.
    """
    if why_not_quiesced(facts) is not None:
        return {}
    try:
        domain.api.agentSetResponseTimeout(ANSWER_WITHIN, 0)
        return t.cast("dict[str, t.Any]", domain.api.guestInfo(0, 0))
    except libvirt.libvirtError:
        return {}  # the information is optional
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            domain.api.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)


def _channels(xml: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(xml).findall("./devices/channel/target[@name='org.qemu.guest_agent.0']")
