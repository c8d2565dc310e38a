# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freezes the guest's file systems while a backup begins, and thaws them.

A freeze whose answer is lost may still take place. After such a freeze, the guest is asked until it is known to be
thawed. A freeze of another program is left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
import time
import typing as t
from xml.etree import ElementTree

from ..errors import CbtError, HypervisorError, Refused, check_range
from .connection import Domain, libvirt
from .domain import DomainFacts, agent_command

ANSWER_WITHIN = 30  # seconds: an agent that hangs must delay neither the backup nor the guest
_STATUS_WITHIN = 5  # seconds, after as many for libvirt to find the agent free
_PAUSE = 1.0  # seconds between two questions

FILESYSTEM = "filesystem"
CRASH = "crash"

_FROZEN = "frozen"
_THAWED = "thawed"
_UNKNOWN = "it is not known how long the file systems stayed frozen"


@dataclasses.dataclass(frozen=True)
class FreezeOptions:
    """Whether and how to freeze the guest; module cbt_backup documents the options."""

    quiesce: str = "auto"
    freeze_mountpoints: tuple[str, ...] = ()
    freeze_timeout: int = 60
    thaw_timeout: int = 300

    def check(self) -> None:
        """Raise Refused if a limit is not between 1 second and 1 day."""
        for option in ("freeze_timeout", "thaw_timeout"):
            check_range(option, getattr(self, option), "from 1 to 86400 seconds", 1, 86400)


class _NoAnswer(Exception):
    """The agent did not answer a command, which may or may not be carried out."""


class _AgentRefused(Exception):
    """The agent answered a command with an error."""


def _ask(domain: Domain, command: str, within: int, **arguments: t.Any) -> t.Any:
    """Return the agent's answer. Raises _NoAnswer or _AgentRefused."""
    request = json.dumps({"execute": f"guest-fsfreeze-{command}", "arguments": arguments})
    try:
        return json.loads(agent_command(domain, request, within))["return"]
    except (libvirt.libvirtError, HypervisorError, ValueError, RecursionError) as error:
        # The error codes of libvirt 9.0 do not distinguish the two. Only errors of the agent name the command.
        raise (_AgentRefused if f"'guest-fsfreeze-{command}'" in str(error) else _NoAnswer)(str(error)) from error


def _count(answer: t.Any) -> int:
    """Return the number of file systems in an answer, which may be anything: a guest makes it."""
    return max(0, answer) if isinstance(answer, int) else 0


def _status(domain: Domain) -> str | None:
    """Return frozen, thawed, or the error of an agent without this command; None if it does not answer."""
    try:
        return str(_ask(domain, "status", _STATUS_WITHIN))
    except _AgentRefused as error:
        return str(error)
    except _NoAnswer:
        return None


def why_not_quiesced(facts: DomainFacts) -> str | None:
    """Return why the guest's file systems cannot be frozen now; None if an agent is connected."""
    if facts.state != "running":
        return f"the domain is {facts.state}"
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


class Freezer:
    """Freezes the file systems of one guest, and thaws those that it froze.

    ``consistency`` is filesystem or crash. ``note`` is why it is only crash although a freeze was expected, and
    ``warning`` says that the guest may still be frozen; both are None otherwise.
    """

    def __init__(self, domain: Domain, facts: DomainFacts, options: FreezeOptions) -> None:
        self._domain, self._facts, self._options = domain, facts, options
        self.consistency = CRASH
        self.note: str | None = None
        self.warning: str | None = None
        self._frozen = 0  # file systems that this object froze
        self._uncertain = False  # whether the guest may be frozen by this object
        self._until = math.inf
        self._watch: threading.Thread | None = None

    @contextlib.contextmanager
    def frozen(self) -> t.Iterator[None]:
        """Freeze the guest's file systems for the block, if ``quiesce`` asks for it, and thaw them.

        Raises HypervisorError if ``quiesce`` is required and they were not frozen all the time.
        """
        try:
            self._freeze()
            self._check()
            yield
        finally:
            self._thaw()
            if self._uncertain:
                self._watch = threading.Thread(target=self._thaw_later, daemon=True)
                self._watch.start()
        self._check()

    @contextlib.contextmanager
    def settled(self) -> t.Iterator[None]:
        """Wait after the block, for ``thaw_timeout``, until the guest is known to be thawed.

        If it is not, an error of the block includes ``warning``.
        """
        try:
            yield
        except CbtError as error:
            self._settle()
            if self.warning is not None:
                error.args = (f"{error} {self.warning}",)
            raise
        finally:
            self._settle()

    def _check(self) -> None:
        if self._options.quiesce == "required" and self.consistency != FILESYSTEM:
            raise HypervisorError(
                f"Cannot freeze the file systems of {self._facts.name}: {self.note}. Check qemu-guest-agent in the"
                " guest, or set quiesce to auto."
            )

    def _freeze(self) -> None:
        reason = why_not_quiesced(self._facts)
        if self._options.quiesce == "never" or (self._options.quiesce == "auto" and reason is not None):
            # Without an agent's channel, no freeze is expected, and a note in every backup would help no one.
            self.note = reason if _channels(self._facts.xml) and self._facts.state != "paused" else None
            return
        before = _status(self._domain)
        if before == _FROZEN:
            self.note = self._others
        elif before is None:
            self.note = "the guest agent does not answer, so the file systems were not frozen"
        else:
            self._send_freeze()

    @property
    def _others(self) -> str:
        return (
            "the guest was already frozen, by another program or a killed run, and that freeze was left alone. If"
            f" nothing needs it, run virsh domfsthaw {self._facts.name}"
        )

    def _send_freeze(self) -> None:
        wanted = list(self._options.freeze_mountpoints)
        within = self._options.freeze_timeout
        try:
            if wanted:
                answer = _ask(self._domain, "freeze-list", within, mountpoints=wanted)
            else:
                answer = _ask(self._domain, "freeze", within)
        except _NoAnswer as error:
            self._uncertain = True
            self.note = f"the guest agent did not confirm the freeze: {error}"
            return
        except _AgentRefused as error:  # an agent that fails thaws what it froze
            frozen = _status(self._domain) == _FROZEN
            self.note = self._others if frozen else f"the file systems were not frozen: {error}"
            return
        self._frozen = _count(answer)
        self._uncertain = not self._frozen
        # An agent that knows none of the mount points reports success, with no file systems frozen.
        if self._frozen >= max(1, len(wanted)):
            self.consistency = FILESYSTEM
        else:
            self.note = f"the agent froze {self._frozen} file systems" + (f" of {', '.join(wanted)}" if wanted else "")

    def _thaw(self) -> None:
        """Thaw what was frozen, and decide whether it was frozen until now."""
        if not self._frozen:
            return
        reason = None
        try:
            thawed = _count(_ask(self._domain, "thaw", ANSWER_WITHIN))
            if thawed < self._frozen:
                reason = f"{self._frozen - thawed} of {self._frozen} file systems thawed by themselves"
        except _NoAnswer as error:
            self._uncertain = True
            reason = f"{_UNKNOWN}: {error}"
        except _AgentRefused as error:
            status = _status(self._domain)
            self._uncertain = status != _THAWED
            # Windows thaws by itself after 10 s. The agent then answers with an error.
            what = "the guest thawed by itself" if status == _THAWED else _UNKNOWN
            reason = None if status == _FROZEN else f"{what}: {error}"
        if reason is not None:
            self.consistency, self.note = CRASH, self.note or reason

    def _thaw_later(self) -> None:
        while not self._known_thawed():
            if time.monotonic() > self._until:
                return
            time.sleep(_PAUSE)
        self._uncertain = False

    def _known_thawed(self) -> bool:
        """Ask the guest whether it is frozen, and thaw it. Return whether it is known to be thawed."""
        try:
            if not self._domain.api.isActive():
                return True
            status = _status(self._domain)
            if status in (None, _THAWED):
                return status is not None
            _ask(self._domain, "thaw", ANSWER_WITHIN)
            return _status(self._domain) != _FROZEN
        except libvirt.libvirtError as error:
            return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)
        except (HypervisorError, _NoAnswer, _AgentRefused):
            return False

    def _settle(self) -> None:
        if self._watch is None:
            return
        self._until = time.monotonic() + self._options.thaw_timeout
        self._watch.join(self._options.thaw_timeout + 2 * ANSWER_WITHIN)
        self._watch = None
        if self._uncertain:
            self.warning = (
                f"The file systems of {self._facts.name} may still be frozen: the guest agent did not confirm a thaw"
                f" within {self._options.thaw_timeout} s. Run virsh domfsthaw {self._facts.name}, or restart the guest."
            )


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
