# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freezing a guest by each policy, with and without an agent that answers."""

from __future__ import annotations

import contextlib
import types

import pytest

from _cbt.errors import HypervisorError
from _cbt.hypervisor import agent

CHANNEL = "<channel><target name='org.qemu.guest_agent.0' state='connected'/></channel>"


class LibvirtError(Exception):
    """An error of libvirt, which need not be installed for these tests."""


@pytest.fixture(autouse=True)
def no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace libvirt by the two names that are used."""
    replaced = types.SimpleNamespace(libvirtError=LibvirtError, VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK=-2)
    monkeypatch.setattr(agent, "libvirt", replaced)


class Guest:
    """A domain as libvirt shows it, with an agent that freezes a number of file systems, or fails."""

    name = "web"

    def __init__(self, frozen: int | None) -> None:
        self.api, self.frozen = self, frozen
        self.calls: list[str] = []

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None:  # noqa: N802  # as libvirt has it
        pass

    def fsFreeze(self, mountpoints: list[str] | None, flags: int) -> int:  # noqa: N802
        self.calls.append("freeze")
        if self.frozen is None:
            raise LibvirtError("the guest agent does not answer")
        return self.frozen

    def fsThaw(self) -> None:  # noqa: N802
        self.calls.append("thaw")


def facts(connected: bool) -> types.SimpleNamespace:
    xml = f"<domain><devices>{CHANNEL if connected else ''}</devices></domain>"
    return types.SimpleNamespace(name="web", active=True, xml=xml, state="running")


@pytest.mark.parametrize(
    ("policy", "connected", "frozen", "consistency", "asked"),
    [
        ("never", True, 2, "crash", False),
        ("auto", True, 2, "filesystem", True),
        ("auto", True, None, "crash", True),
        ("auto", True, 0, "crash", True),
        ("auto", False, 2, "crash", False),
        ("required", True, 2, "filesystem", True),
    ],
)
def test_a_guest_is_frozen_if_the_policy_asks_for_it_and_the_agent_answers(
    policy: str, connected: bool, frozen: int | None, consistency: str, asked: bool
) -> None:
    guest = Guest(frozen)
    with agent.quiesced(guest, facts(connected), policy, ()) as quiesce:  # type: ignore[arg-type]
        guest.calls.append("backup")
    assert quiesce.consistency == consistency
    assert guest.calls == (["freeze", "backup", "thaw"] if asked else ["backup"])


@pytest.mark.parametrize(("connected", "frozen"), [(True, None), (True, 0), (False, None), (False, 0)])
def test_a_required_freeze_that_fails_is_an_error(connected: bool, frozen: int | None) -> None:
    guest = Guest(frozen)
    with pytest.raises(HypervisorError, match="Cannot freeze the file systems of web"), contextlib.ExitStack() as stack:
        stack.enter_context(agent.quiesced(guest, facts(connected), "required", ()))  # type: ignore[arg-type]
        guest.calls.append("backup")
    assert guest.calls == ["freeze", "thaw"]
