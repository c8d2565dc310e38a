# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Heartbeats: when a module counts its controller as lost, and when an action plugin sends them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import types
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure
from lab.process import alive, wait_until

from ansible_collections.kvm.cbt.plugins.module_utils import _heartbeat
from ansible_collections.kvm.cbt.plugins.plugin_utils import _heartbeats

ROOT = Path(__file__).resolve().parents[3]
HOUR = 3600 * 10**9

Tick = Callable[[int], None]  # is called in each second of a watched run, with its number


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "heartbeat"
    path.touch()
    return path


@pytest.fixture
def seconds(file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tick, int], int | None]:
    """Watch a run for this many seconds. Return the second in which its controller counted as lost."""

    class Ended(Exception):
        pass

    def watched(tick: Tick, length: int) -> int | None:
        passed = 0

        def sleep(duration: float) -> None:
            nonlocal passed
            assert duration == 1
            if passed == length:
                raise Ended
            passed += 1
            tick(passed)

        monkeypatch.setattr(_heartbeat.time, "sleep", sleep)
        lost: list[str] = []
        before = _heartbeat._times(str(file))
        assert before is not None
        try:
            _heartbeat._watch(str(file), before, lost.append)
        except Ended:
            assert lost == []
            return None
        assert lost == ["the loss of the controller: no heartbeat for 30 s"]
        return passed

    return watched


def _set(path: Path, seconds: int) -> None:
    os.utime(path, ns=(seconds * 10**9, seconds * 10**9))


def test_a_controller_is_lost_30_seconds_after_its_last_heartbeat(seconds: t.Any, file: Path) -> None:
    assert seconds(lambda number: None, 100) == 30
    assert not file.exists()


def test_the_last_heartbeat_counts(seconds: t.Any, file: Path) -> None:
    assert seconds(lambda number: _set(file, number) if number <= 50 and number % 5 == 0 else None, 100) == 80


@pytest.mark.parametrize(
    "tick",
    [
        pytest.param(lambda file, number: _set(file, number) if number % 5 == 0 else None, id="every 5 seconds"),
        pytest.param(lambda file, number: _set(file, number) if number % 29 == 0 else None, id="just in time"),
        pytest.param(
            lambda file, number: _set(file, 10**6 - number) if number % 5 == 0 else None, id="clock goes back"
        ),
        pytest.param(
            lambda file, number: _set(file, number + (10**8 if number > 50 else 0)) if number % 5 == 0 else None,
            id="clock jumps ahead",
        ),
    ],
)
def test_a_controller_that_sends_heartbeats_is_not_lost(
    tick: Callable[[Path, int], None], seconds: t.Any, file: Path
) -> None:
    assert seconds(lambda number: tick(file, number), 200) is None


def test_a_host_that_was_suspended_has_30_seconds_from_then_on(
    seconds: t.Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_heartbeat.time, "monotonic", lambda: HOUR)
    monkeypatch.setattr(_heartbeat.time, "time", lambda: HOUR)
    assert seconds(lambda number: _set(file, number) if number in (20, 45) else None, 100) == 75


def test_a_file_that_was_removed_gets_no_heartbeats(seconds: t.Any, file: Path) -> None:
    assert seconds(lambda number: file.unlink(missing_ok=True) if number == 10 else None, 100) == 30


def test_without_a_heartbeat_file_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_heartbeat.VARIABLE, raising=False)
    _heartbeat.watch(_never, _never)
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_a_file_that_cannot_be_read_gives_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_heartbeat.VARIABLE, str(tmp_path / "missing"))
    warnings: list[str] = []
    _heartbeat.watch(_never, warnings.append)
    assert len(warnings) == 1 and str(tmp_path / "missing") in warnings[0]
    assert _heartbeat.VARIABLE not in os.environ
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def _never(text: str) -> None:
    raise AssertionError(text)


def test_the_modules_that_can_be_interrupted_get_heartbeats() -> None:
    routed = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["plugin_routing"]["modules"]
    assert {each["action_plugin"] for each in routed.values()} == {"kvm.cbt.cbt_backup"}
    modules = ROOT.glob("plugins/modules/cbt_*.py")
    assert {*routed, "cbt_backup"} == {path.stem for path in modules if "_runtime.interruptible(" in path.read_text()}


class _Action:
    """An action plugin whose connection runs commands on this machine."""

    def __init__(self, fails: str = "") -> None:
        self._connection = types.SimpleNamespace(become="sudo", used=[])
        self._task = types.SimpleNamespace(environment=[{"LANG": "C"}])
        self._display = types.SimpleNamespace(warning=self._warn)
        self.warnings: list[str] = []
        self.fails = fails
        self.beats = threading.Semaphore(0)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)

    def _low_level_execute_command(self, command: str, sudoable: bool = True) -> dict[str, t.Any]:
        assert not sudoable
        program = command.partition(" ")[0]
        self._connection.used.append((program, self._connection.become))
        if program == "touch":
            self.beats.release()
        if program == self.fails:
            raise AnsibleConnectionFailure("made to fail")
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        return {"rc": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


@contextlib.contextmanager
def _sending(action: _Action, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Heartbeats in quick succession; gives the file."""
    monkeypatch.setattr(_heartbeats, "INTERVAL", 0.01)
    with _heartbeats.heartbeats(t.cast("t.Any", action)):
        lang, added = action._task.environment
        assert lang == {"LANG": "C"}
        yield Path(added[_heartbeat.VARIABLE])


def _beats(action: _Action, count: int) -> None:
    assert all(action.beats.acquire(timeout=30) for _each in range(count))


def test_heartbeats_touch_a_file_of_the_login_user_while_the_module_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    action = _Action()
    with _sending(action, monkeypatch) as file:
        before = file.stat().st_mtime_ns
        _beats(action, 3)
        assert file.stat().st_mtime_ns > before
    assert not file.exists()
    assert action._task.environment == [{"LANG": "C"}]
    assert {become for program, become in action._connection.used if program == "touch"} == {None}
    assert action._connection.become == "sudo" and action.warnings == []
    wait_until(lambda: all(thread.name != "heartbeats" for thread in threading.enumerate()), 60, "end of heartbeats")


def test_what_a_login_script_prints_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_heartbeats, "_CREATE", f"echo Welcome to /tmp; {_heartbeats._CREATE}; echo")
    with _sending(_Action(), monkeypatch) as file:
        assert file.stat().st_size == 0


def test_a_heartbeat_that_fails_is_followed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    action = _Action(fails="touch")
    with _sending(action, monkeypatch) as file:
        _beats(action, 3)
    assert not file.exists()


def test_a_module_that_may_still_run_keeps_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    action = _Action()
    with pytest.raises(ValueError, match="timed out"), _sending(action, monkeypatch) as file:
        raise ValueError("timed out")
    wait_until(lambda: all(thread.name != "heartbeats" for thread in threading.enumerate()), 60, "end of heartbeats")
    file.unlink()
    assert action._task.environment == [{"LANG": "C"}]


def test_a_host_that_is_lost_after_the_module_ended_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with _sending(_Action(fails="rm"), monkeypatch) as file:
        pass
    file.unlink()


def test_without_room_for_a_heartbeat_file_the_module_runs_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_heartbeats, "_CREATE", "mktemp /nonexistent/XXXXXXXXXX")
    action = _Action()
    with _heartbeats.heartbeats(t.cast("t.Any", action)):
        assert action._task.environment == [{"LANG": "C"}]
    assert len(action.warnings) == 1 and "will not end itself if the controller is lost" in action.warnings[0]


_ORPHAN = """
import multiprocessing, os, sys, threading, time
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import conftest, collection.test_heartbeat as test
from ansible_collections.kvm.cbt.plugins.plugin_utils import _heartbeats

def worker():
    _heartbeats.INTERVAL = 0.01
    action = test._Action()
    with _heartbeats.heartbeats(action):
        print(os.getpid(), action._task.environment[-1][test._heartbeat.VARIABLE], flush=True)
        threading.Event().wait()

multiprocessing.get_context("fork").Process(target=worker).start()
threading.Event().wait()
"""


def test_a_worker_ends_once_ansible_playbook_was_killed() -> None:
    paths = [str(ROOT / "tests/unit"), str(ROOT / "tests")]
    with subprocess.Popen([sys.executable, "-c", _ORPHAN, *paths], stdout=subprocess.PIPE, text=True) as playbook:
        assert playbook.stdout is not None
        shown, file = playbook.stdout.readline().split()
        worker = int(shown)
        assert alive(worker)
        playbook.send_signal(signal.SIGKILL)
        wait_until(lambda: not alive(worker), 30, "end of the worker")
    Path(file).unlink()
