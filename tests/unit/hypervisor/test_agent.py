# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freezing a guest by each policy, with agents that behave well and badly."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing as t

import pytest
from lab.stub_agent import FILE_SYSTEMS, FREEZE, STATUS, THAW, Agent, Refusal, Silence

from _cbt.errors import CbtError, HypervisorError, Refused
from _cbt.hypervisor import agent
from _cbt.hypervisor.agent import FreezeOptions, Freezer

CHANNEL = "<channel><target name='org.qemu.guest_agent.0' state='connected'/></channel>"


class LibvirtError(Exception):
    """An error of libvirt, which need not be installed for these tests."""

    def get_error_code(self) -> str:
        return str(self)


class Guest(Agent):
    """A domain as libvirt shows it, with its agent."""

    name = "web"

    def __init__(self) -> None:
        super().__init__()
        self.defined = self.active = True
        self.deaf = 0  # commands that find the agent busy, each without an answer

    @property
    def api(self) -> Guest:
        if not self.defined:
            raise LibvirtError("gone")
        return self

    def isActive(self) -> bool:  # noqa: N802  # as libvirt has it
        return self.active


def _agent_command(guest: Guest, request: str, within: int) -> str:
    """Answer as libvirt 9.0 does."""
    command = json.loads(request)["execute"]
    try:
        if guest.deaf:
            guest.deaf -= 1
            raise Silence
        return json.dumps({"return": guest.carry_out(command, {})})
    except Silence as error:
        raise LibvirtError("Guest agent is not responding: Guest agent not available for now") from error
    except Refusal as error:
        raise LibvirtError(f"internal error: unable to execute QEMU agent command '{command}': {error}") from error


@pytest.fixture(autouse=True)
def no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace libvirt by the names that are used, and do not wait between two queries."""
    monkeypatch.setattr(agent, "libvirt", types.SimpleNamespace(libvirtError=LibvirtError, VIR_ERR_NO_DOMAIN="gone"))
    monkeypatch.setattr(agent, "agent_command", _agent_command)
    monkeypatch.setattr(agent, "_PAUSE", 0.0)


@pytest.fixture
def guest() -> Guest:
    """A guest whose agent behaves well."""
    return Guest()


def freezer(
    guest: Guest, quiesce: str = "auto", connected: bool = True, state: str = "running", **more: t.Any
) -> Freezer:
    xml = f"<domain><devices>{CHANNEL if connected else ''}</devices></domain>"
    facts = types.SimpleNamespace(name="web", active=True, xml=xml, state=state)
    return Freezer(guest, facts, FreezeOptions(quiesce, **more))  # type: ignore[arg-type]


def take(guest: Guest, freeze: Freezer) -> Freezer:
    """Back up, which is another command in the guest's list."""
    with freeze.settled(), freeze.frozen():
        guest.commands.append("backup")
    return freeze


def silent(action: t.Callable[[], object] = lambda: None) -> t.Callable[[], t.Any]:
    """Act without an answer."""

    def play() -> None:
        action()
        raise Silence

    return play


def refuse(text: str, action: t.Callable[[], object] = lambda: None) -> t.Callable[[], t.Any]:
    """Act, and answer with an error."""

    def play() -> None:
        action()
        raise Refusal(text)

    return play


def once(first: t.Callable[[], t.Any], then: t.Callable[[], t.Any]) -> t.Callable[[], t.Any]:
    """Behave in one way, and afterwards in another."""
    plays = [first]

    def play() -> t.Any:
        return (plays.pop() if plays else then)()

    return play


@dataclasses.dataclass(frozen=True)
class Row:
    """An agent's behaviour, and the result that is right.

    ``frozen`` is whether the guest is frozen in the end, ``commands`` are those of the agent and the backup.
    """

    prepare: t.Callable[[Guest], None]
    consistency: str
    note: str | None
    commands: tuple[str, ...] | None = None
    frozen: bool = False
    warning: bool = False

    @property
    def patience(self) -> int:
        """The ``thaw_timeout``, which elapses only where a warning is right."""
        return 0 if self.warning else 60


def _behave(**plays: t.Callable[[Guest], t.Callable[[], t.Any]]) -> t.Callable[[Guest], None]:
    def prepare(guest: Guest) -> None:
        for name, play in plays.items():
            guest.behaviour[f"guest-fsfreeze-{name}"] = play(guest)

    return prepare


def _frozen_before(guest: Guest) -> None:
    guest.frozen = True


def _frozen_between(guest: Guest) -> None:
    guest.behaviour[STATUS] = once(lambda: _frozen_before(guest) or "thawed", lambda: "frozen")


def _slow_freeze(guest: Guest) -> None:
    def play() -> None:
        guest.deaf, guest.frozen = 5, True
        raise Silence

    guest.behaviour[FREEZE] = play


def _gone_while_freezing(guest: Guest) -> None:
    def play() -> None:
        guest.deaf, guest.frozen = 1_000_000_000, True
        raise Silence

    guest.behaviour[FREEZE] = play


def _shut_off_while_freezing(guest: Guest) -> None:
    def play() -> None:
        guest.deaf, guest.active = 1_000_000_000, False
        raise Silence

    guest.behaviour[FREEZE] = play


def _undefined_while_freezing(guest: Guest) -> None:
    def play() -> None:
        guest.defined = False
        raise Silence

    guest.behaviour[FREEZE] = play


def _refuse_and_hang(guest: Guest) -> None:
    def play() -> None:
        guest.deaf = 5
        raise Refusal("failed to open /data")

    guest.behaviour[THAW] = once(play, guest.thaw)


def _freeze_with_nonsense(guest: Guest) -> None:
    guest.behaviour[FREEZE] = lambda: f"\x1b[2J{guest.freeze()}"


def _deaf(guest: Guest) -> None:
    guest.deaf = 1_000_000_000


def _without_status(guest: Guest) -> None:
    guest.behaviour[STATUS] = refuse("The command guest-fsfreeze-status has not been found")


def _without_status_frozen_before(guest: Guest) -> None:
    _without_status(guest)
    guest.frozen = True


def _without_status_lost_answer(guest: Guest) -> None:
    _without_status(guest)
    guest.behaviour[FREEZE] = silent(guest.freeze)


VSS = "couldn't hold writes: fsfreeze is limited up to 10 seconds"
ROWS = {
    "behaves well": Row(lambda guest: None, "filesystem", None, (STATUS, FREEZE, "backup", THAW)),
    "freezes slowly": Row(_slow_freeze, "crash", "did not confirm the freeze"),
    "freezes, but the answer is lost": Row(
        _behave(freeze=lambda guest: silent(guest.freeze)), "crash", "did not confirm the freeze"
    ),
    "does not receive the freeze": Row(_behave(freeze=lambda guest: silent()), "crash", "did not confirm the freeze"),
    "ends while it freezes": Row(_gone_while_freezing, "crash", "did not confirm", frozen=True, warning=True),
    "ends with its domain": Row(_shut_off_while_freezing, "crash", "did not confirm"),
    "ends with its transient domain": Row(_undefined_while_freezing, "crash", "did not confirm"),
    "hangs": Row(_deaf, "crash", "does not answer", ("backup",)),
    "cannot freeze": Row(
        _behave(freeze=lambda guest: refuse("failed to freeze /data")),
        "crash",
        "failed to freeze /data",
        (STATUS, FREEZE, STATUS, "backup"),
    ),
    "froze no file systems": Row(
        _behave(freeze=lambda guest: lambda: 0),
        "crash",
        "the agent froze 0 file systems",
        (STATUS, FREEZE, "backup", STATUS),
    ),
    "answers nonsense to the freeze": Row(_freeze_with_nonsense, "crash", "the agent froze 0 file systems"),
    "refuses the thaw, and hangs": Row(_refuse_and_hang, "crash", "not known how long .*failed to open /data"),
    "was frozen by another program": Row(_frozen_before, "crash", "already frozen", (STATUS, "backup"), frozen=True),
    "is frozen by another program just before": Row(
        _frozen_between, "crash", "already frozen", (STATUS, FREEZE, STATUS, "backup"), frozen=True
    ),
    "thaws by itself, and refuses the thaw": Row(
        _behave(thaw=lambda guest: refuse(VSS, guest.thaw)), "crash", f"thawed by itself: .*{VSS}"
    ),
    "thaws by itself, and has nothing to thaw": Row(
        _behave(thaw=lambda guest: lambda: guest.thaw() - FILE_SYSTEMS), "crash", "2 of 2 file systems thawed by them"
    ),
    "thaws one file system by itself": Row(
        _behave(thaw=lambda guest: lambda: guest.thaw() - 1), "crash", "1 of 2 file systems thawed by themselves"
    ),
    "refuses the thaw once": Row(_behave(thaw=lambda guest: once(refuse("busy"), guest.thaw)), "filesystem", None),
    "refuses to thaw": Row(
        _behave(thaw=lambda guest: refuse("failed to open /data")), "filesystem", None, frozen=True, warning=True
    ),
    "thaws, but the answer is lost": Row(
        _behave(thaw=lambda guest: once(silent(guest.thaw), guest.thaw)), "crash", "not known how long"
    ),
    "does not receive the thaw": Row(
        _behave(thaw=lambda guest: once(silent(), guest.thaw)), "crash", "not known how long"
    ),
    "has no command for the status": Row(_without_status, "filesystem", None, (STATUS, FREEZE, "backup", THAW)),
    "has no such command, and was frozen by another program": Row(
        _without_status_frozen_before, "crash", "has been disabled", (STATUS, FREEZE, STATUS, "backup"), frozen=True
    ),
    "has no such command, and the freeze's answer is lost": Row(
        _without_status_lost_answer, "crash", "did not confirm the freeze"
    ),
}


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("behaviour", ROWS)
def test_a_guest_is_thawed_if_this_program_froze_it(behaviour: str, guest: Guest) -> None:
    row = ROWS[behaviour]
    row.prepare(guest)
    freeze = take(guest, freezer(guest, thaw_timeout=row.patience))
    assert freeze.consistency == row.consistency
    assert freeze.note is None if row.note is None else re.search(row.note, freeze.note or "")
    assert row.commands in (None, tuple(guest.commands))
    assert guest.frozen == row.frozen
    assert (freeze.warning is not None and "virsh domfsthaw web" in freeze.warning) == row.warning


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("behaviour", ROWS)
def test_a_required_freeze_that_did_not_last_is_an_error(behaviour: str, guest: Guest) -> None:
    row = ROWS[behaviour]
    row.prepare(guest)
    if row.consistency == "filesystem":
        freeze = take(guest, freezer(guest, "required", thaw_timeout=row.patience))
        assert (freeze.consistency, freeze.warning is not None) == ("filesystem", row.warning)
    else:
        with pytest.raises(HypervisorError, match=f"Cannot freeze the file systems of web: .*{row.note}") as caught:
            take(guest, freezer(guest, "required", thaw_timeout=row.patience))
        assert ("may still be frozen" in str(caught.value)) == row.warning
    assert guest.frozen == row.frozen


@pytest.mark.parametrize(("quiesce", "connected", "state"), [("never", True, "running"), ("auto", False, "running")])
def test_a_guest_is_not_queried_without_policy_or_agent(
    quiesce: str, connected: bool, state: str, guest: Guest
) -> None:
    freeze = take(guest, freezer(guest, quiesce, connected, state))
    assert (guest.commands, freeze.consistency, freeze.note) == (["backup"], "crash", None)


@pytest.mark.parametrize("state", ["paused", "crashed", "pmsuspended", "shutdown"])
def test_a_domain_that_does_not_run_is_not_queried(state: str, guest: Guest) -> None:
    freeze = take(guest, freezer(guest, state=state))
    assert (guest.commands, freeze.consistency) == (["backup"], "crash")
    assert freeze.note == (None if state == "paused" else f"the domain is {state}")


@pytest.mark.parametrize(("named", "consistency"), [(("/a",), "filesystem"), (("/a", "/b", "/c"), "crash")])
def test_all_named_mount_points_must_be_frozen(named: tuple[str, ...], consistency: str, guest: Guest) -> None:
    assert take(guest, freezer(guest, freeze_mountpoints=named)).consistency == consistency
    assert guest.commands == [STATUS, f"{FREEZE}-list", "backup", THAW]


def test_a_backup_that_fails_thaws_the_guest_and_keeps_its_error(guest: Guest) -> None:
    freeze = freezer(guest)
    with pytest.raises(Refused, match="^made to fail$"), freeze.settled(), freeze.frozen():
        raise Refused("made to fail")
    assert guest.commands == [STATUS, FREEZE, THAW]


def test_the_error_of_a_backup_says_that_the_guest_may_be_frozen(guest: Guest) -> None:
    _gone_while_freezing(guest)
    freeze = freezer(guest, thaw_timeout=0)
    with (
        pytest.raises(Refused, match="^made to fail The .* may still be frozen: .*virsh domfsthaw web"),
        freeze.settled(),
        freeze.frozen(),
    ):
        raise Refused("made to fail")


@pytest.mark.parametrize("option", ["freeze_timeout", "thaw_timeout"])
@pytest.mark.parametrize("seconds", [0, 86401])
def test_limits_out_of_range_are_refused(option: str, seconds: int) -> None:
    with pytest.raises(CbtError, match=f"{option} is {seconds}; it must be from 1 to 86400 seconds"):
        FreezeOptions(**{option: seconds}).check()  # type: ignore[arg-type]
