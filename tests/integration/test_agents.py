# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents that behave badly, played by a stub that libvirt takes for the agent of a real guest."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator

import pytest
from lab.disks import DiskSpec
from lab.guest import LinuxGuest
from lab.hypervisor import Hypervisor
from lab.process import wait_until
from lab.stub_agent import FREEZE, STATUS, THAW, Refusal, Silence, StubAgent
from witness import ask, session_of

from _cbt.control import Control, Progress
from _cbt.errors import CbtError
from _cbt.operations.backup.backup import backup
from _cbt.operations.backup.result import BackupResult
from _cbt.repository.repository import Repository

pytestmark = pytest.mark.xdist_group("stub agent")

MIB = 1 << 20
VSS = "couldn't hold writes: fsfreeze is limited up to 10 seconds"


class Stage(t.NamedTuple):
    """A guest whose agent is the stub."""

    guest: LinuxGuest
    stub: StubAgent

    def backup(
        self, repository: Repository, observe: t.Callable[[Progress], None] | None = None, **wanted: t.Any
    ) -> BackupResult:
        """Back up with short limits, and without a checkpoint."""
        limits = {"mode": "copy", "freeze_timeout": 1, "thaw_timeout": 60, **wanted}
        result = backup(session_of(self.guest), repository, ask(self.guest.name, **limits), control=Control(observe))
        assert result.point is not None
        return result

    @property
    def answers(self) -> bool:
        """Whether libvirt is connected to the stub, and has an answer from it."""
        return self.guest.agent_answers()


@pytest.fixture(scope="module")
def running(hypervisor: Hypervisor) -> Iterator[Stage]:
    with (
        StubAgent(hypervisor.folder() / "agent") as stub,
        LinuxGuest(hypervisor, [DiskSpec("vda", 64 * MIB)], stub=stub.path) as guest,
    ):
        guest.wait_ready()
        yield Stage(guest, stub)


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    """The guest, with a stub that behaves well so far."""
    running.stub.reset()
    yield running
    running.stub.reset()
    wait_until(lambda: running.answers, 30, "the stub agent")


def _lost(action: t.Callable[[], object]) -> t.Callable[[], t.Any]:
    def play() -> None:
        action()
        raise Silence

    return play


def _refused(text: str, action: t.Callable[[], object] = lambda: None) -> t.Callable[[], t.Any]:
    def play() -> None:
        action()
        raise Refusal(text)

    return play


def _warned(result: BackupResult, text: str) -> bool:
    return any(text in warning for warning in result.warnings)


def test_a_stub_that_behaves_well_is_frozen_and_thawed(stage: Stage, repository: Repository) -> None:
    result = stage.backup(repository, quiesce="required")
    assert result.point is not None and (result.point.consistency, result.warnings) == ("filesystem", ())
    assert [each for each in stage.stub.commands if "fsfreeze" in each] == [STATUS, FREEZE, THAW]


def test_a_freeze_that_ends_during_the_copy_is_thawed_then(stage: Stage, repository: Repository) -> None:
    frozen, thawed = threading.Event(), threading.Event()

    def slow() -> int:
        assert frozen.wait(60)
        return stage.stub.freeze()

    def thaw() -> int:
        thawed.set()
        return stage.stub.thaw()

    def observe(progress: Progress) -> None:
        if progress.phase == "publishing":
            frozen.set()
            assert thawed.wait(60)  # before the copy ends

    stage.stub.behaviour.update({FREEZE: slow, THAW: thaw})
    result = stage.backup(repository, observe)
    assert result.point is not None and result.point.consistency == "crash"
    assert _warned(result, "the guest agent did not confirm the freeze")
    assert not stage.stub.frozen and not _warned(result, "may still be frozen")


def test_a_freeze_that_ends_after_the_copy_is_thawed_then(stage: Stage, repository: Repository) -> None:
    over = threading.Event()

    def slow() -> int:
        assert over.wait(60)
        # Pending queries are sent after the end of the copy.
        assert stage.stub.wait_received(stage.stub.received + 1)
        return stage.stub.freeze()

    def observe(progress: Progress) -> None:
        if progress.phase == "publishing":
            over.set()

    stage.stub.behaviour[FREEZE] = slow
    result = stage.backup(repository, observe)
    assert result.point is not None and result.point.consistency == "crash"
    assert not stage.stub.frozen and not _warned(result, "may still be frozen")


@pytest.mark.parametrize("quiesce", ["auto", "required"])
def test_a_freeze_whose_answer_is_lost_is_thawed(quiesce: str, stage: Stage, repository: Repository) -> None:
    stage.stub.behaviour[FREEZE] = _lost(stage.stub.freeze)
    if quiesce == "auto":
        result = stage.backup(repository)
        assert result.point is not None and result.point.consistency == "crash"
    else:
        with pytest.raises(CbtError, match="did not confirm the freeze"):
            stage.backup(repository, quiesce=quiesce)
    assert THAW in stage.stub.commands and not stage.stub.frozen


def test_a_guest_that_thaws_after_10_s_makes_a_crash_consistent_point(stage: Stage, repository: Repository) -> None:
    stage.stub.behaviour[THAW] = _refused(VSS, stage.stub.thaw)
    result = stage.backup(repository)
    assert result.point is not None and result.point.consistency == "crash"
    assert _warned(result, "the guest thawed by itself") and _warned(result, VSS)
    with pytest.raises(CbtError, match="the guest thawed by itself"):
        stage.backup(repository, quiesce="required")


@pytest.mark.parametrize("status", [True, False], ids=["with status", "without status"])
def test_the_freeze_of_another_program_is_left_alone(status: bool, stage: Stage, repository: Repository) -> None:
    stage.guest.handle.fsFreeze()
    if not status:
        stage.stub.behaviour[STATUS] = _refused("The command guest-fsfreeze-status has not been found")
    result = stage.backup(repository)
    assert result.point is not None and result.point.consistency == "crash"
    assert _warned(result, "already frozen" if status else "has been disabled")
    with pytest.raises(CbtError, match="Cannot freeze the file systems"):
        stage.backup(repository, quiesce="required")
    assert THAW not in stage.stub.commands and stage.stub.frozen


def test_a_thaw_that_is_refused_once_is_repeated(stage: Stage, repository: Repository) -> None:
    refusals = ["the guest is busy"]

    def thaw() -> int:
        if refusals:
            raise Refusal(refusals.pop())
        return stage.stub.thaw()

    stage.stub.behaviour[THAW] = thaw
    result = stage.backup(repository, quiesce="required")
    assert result.point is not None and (result.point.consistency, result.warnings) == ("filesystem", ())
    assert not stage.stub.frozen


def test_a_guest_that_cannot_be_thawed_is_reported(stage: Stage, repository: Repository) -> None:
    stage.stub.behaviour[THAW] = _refused("failed to open /data")
    result = stage.backup(repository, thaw_timeout=1)
    assert result.point is not None and result.point.consistency == "filesystem"
    assert _warned(result, f"Run virsh domfsthaw {stage.guest.name}")
    assert not stage.guest.job_running()


def test_an_agent_without_status_is_frozen_and_thawed(stage: Stage, repository: Repository) -> None:
    stage.stub.behaviour[STATUS] = _refused("The command guest-fsfreeze-status has not been found")
    result = stage.backup(repository, quiesce="required")
    assert result.point is not None and (result.point.consistency, result.warnings) == ("filesystem", ())
    assert not stage.stub.frozen


def test_an_answer_that_no_agent_gives_freezes_nothing(stage: Stage, repository: Repository) -> None:
    nested: list[t.Any] = []
    for _level in range(400):
        nested = [nested]
    stage.stub.behaviour.update({STATUS: lambda: nested, FREEZE: lambda: "\x1b[2J"})
    result = stage.backup(repository)
    assert result.point is not None and result.point.consistency == "crash"


def test_an_agent_that_ends_while_it_freezes_is_reported(stage: Stage, repository: Repository) -> None:
    def gone() -> None:
        stage.stub.freeze()
        stage.stub.hang_up()
        raise Silence

    stage.stub.behaviour[FREEZE] = gone
    try:
        with pytest.raises(CbtError, match=f"Cannot freeze .*Run virsh domfsthaw {stage.guest.name}"):
            stage.backup(repository, mode="auto", quiesce="required", thaw_timeout=1)
        assert (stage.guest.checkpoints(), stage.guest.job_running()) == ([], False)
    finally:  # libvirt connects again when the guest opens the port
        stage.guest.destroy()
        stage.guest.start()
        stage.guest.wait_ready()
