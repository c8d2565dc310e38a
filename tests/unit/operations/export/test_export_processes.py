# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server as a process: where it runs, what it says when it cannot serve, and what is left of one that was not started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_history import EngineHistory
from histories import KEYS
from samples import UUID, point_id

from _cbt import runtime
from _cbt.control import Control
from _cbt.errors import CbtError, Interrupted, ReadOnly, Refused
from _cbt.operations.export import export as verb
from _cbt.operations.export import exports, launch
from _cbt.operations.export.export import EndRequest, ExportRequest, ExportResult
from _cbt.operations.export.plan import UnixAddress
from _cbt.repository.creation import open_or_create
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.sharing import holding, holds

_SYSTEMD_RUN = """#!{python}
# Stands for systemd-run: starts the command outside of this process, in the environment of a unit.
import os, subprocess, sys
words = sys.argv[1:]
command = words[words.index("--") + 1:]
open({log!r}, "a").write(repr(words[:words.index("--")]) + "\\n")
subprocess.Popen(command, env={{"PATH": os.environ["PATH"], "LANG": "C"}}, cwd="/", start_new_session=True,
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where exports are kept, the test's own."""
    monkeypatch.setattr(runtime, "ROOTS_FOLDER", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


class World:
    """A directory with the restore points of a history, and their exports."""

    def __init__(self, folder: Path) -> None:
        history = EngineHistory(KEYS["plain"])
        history.disk.write(1, 1)
        history.backup()
        place = folder / "repository"
        self.location = RepositoryLocation(str(place))
        open_or_create(self.location)
        for name, data in history.store.objects.items():
            if name.startswith(("packs/", "points/")):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(data)
        self._folder = folder

    def repository(self) -> Repository:
        return open_repository(self.location)

    def export(self, control: Control | None = None, **fields: str) -> ExportResult:
        address = UnixAddress(str(self._folder / "sockets"), os.geteuid(), os.getegid(), 0o600)
        request = ExportRequest("web1", address, **{"name": "x", **fields})  # type: ignore[arg-type]
        return verb.export(self.repository(), self.location, request, control or Control())

    def end(self) -> list[str]:
        return verb.end(self.repository(), EndRequest("x"))

    def left(self) -> tuple[list[str], list[str]]:
        """The folders of exports, and the holds."""
        return os.listdir(exports._root()), [hold.id for hold in holds.listed(self.repository())]


@pytest.fixture
def world(folder: Path) -> Iterator[World]:
    made = World(folder)
    yield made
    made.end()
    assert made.left() == ([], [])


def greeting(path: str | None) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(path or "")
        return client.recv(8)


def test_where_systemd_runs_the_server_is_a_unit(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = folder / "bin"
    tools.mkdir()
    (tools / "systemd-run").write_text(_SYSTEMD_RUN.format(python=sys.executable, log=str(folder / "units")))
    (tools / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(launch, "_has_systemd", lambda: True)
    made = world.export().export
    assert greeting(made.plan.socket) == b"NBDMAGIC"
    (options,) = (folder / "units").read_text().splitlines()
    assert "'--unit=kvm-cbt-export-x.service'" in options and "'--collect'" in options
    assert world.end() == ["x"]
    assert launch.unit("x") == "kvm-cbt-export-x.service"


def test_a_server_that_does_not_start_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_SERVER", "operations.export.nothing")
    with pytest.raises(CbtError, match="gave no reason.*No module named '_cbt.operations.export.nothing'"):
        world.export()
    assert world.left() == ([], [])


def test_a_task_that_is_interrupted_while_the_server_starts_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control()

    def run(*_arguments: object) -> launch.Ended:
        """Start nothing that answers, and be interrupted."""
        control.request("SIGTERM")
        return lambda: None

    monkeypatch.setattr(launch, "_run", run)
    with pytest.raises(Interrupted, match="SIGTERM"):
        world.export(control)
    assert world.left() == ([], [])


def test_another_repository_at_the_location_is_refused(world: World, folder: Path) -> None:
    repository, place = world.repository(), Path(world.location.location)
    place.rename(folder / "away")
    World(folder)
    address = UnixAddress(str(folder / "sockets"), os.geteuid(), os.getegid(), 0o600)
    away = RepositoryLocation(str(folder / "away"))
    request = ExportRequest("web1", address, name="x")
    with pytest.raises(CbtError, match="not the one that was there"):
        verb.export(open_repository(away), RepositoryLocation(str(place)), request, Control())
    assert repository.id and os.listdir(exports._root()) == []
    (folder / "repository").rename(folder / "other")
    (folder / "away").rename(place)


def test_an_export_of_another_repository_is_not_ended(world: World, folder: Path) -> None:
    world.export()
    (folder / "second").mkdir()
    other = World(folder / "second")
    with pytest.raises(Refused, match="is of another repository"):
        other.end()
    assert world.export().changed is False


@pytest.mark.parametrize(
    ("request_", "ended"),
    [
        (EndRequest("x"), ["x"]),
        (EndRequest(domain="web1"), ["x", "y"]),
        (EndRequest(domain=UUID), ["x", "y"]),
        (EndRequest(domain=UUID, restore_point=point_id(9)), []),
        (EndRequest(domain="web2"), []),
        (EndRequest("x", host="kvm9"), []),
        (EndRequest("z", host="kvm9"), ["z"]),
    ],
)
def test_holds_of_exports_end_after_a_restart_of_the_host(
    world: World, monkeypatch: pytest.MonkeyPatch, request_: EndRequest, ended: list[str]
) -> None:
    (point,) = world.repository().points_of().points
    mine = [holding.hold(world.repository(), point, f"export {name}") for name in ("x", "y")]
    other = [holding.hold(world.repository(), point, "instant recovery of web1")]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(holding.socket, "gethostname", lambda: "kvm9")
        other += [holding.hold(world.repository(), point, "export z")]
    assert verb.end(world.repository(), request_, check_only=True) == ended
    assert verb.end(world.repository(), request_) == ended
    left = {hold.purpose.removeprefix("export ") for hold in holds.listed(world.repository())}
    assert left == {"x", "y", "z", "instant recovery of web1"} - set(ended)
    for hold in (*mine, *other):
        holds.release(world.repository(), hold.id)


def test_the_point_is_held_before_the_server_starts_and_until_it_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    start, stop, hold, release = launch.start, launch.stop, holding.hold, holds.release

    def note(word: str, function: object) -> object:
        def noted(*arguments: object) -> object:
            order.append(word)
            return function(*arguments)  # type: ignore[operator]

        return noted

    monkeypatch.setattr(launch, "start", note("start", start))
    monkeypatch.setattr(holding, "hold", note("hold", hold))
    world.export()
    monkeypatch.setattr(launch, "stop", note("stop", stop))
    monkeypatch.setattr(holds, "release", note("release", release))
    assert world.end() == ["x"]
    assert order == ["hold", "start", "stop", "release"]


def test_a_read_only_repository_is_served_with_a_warning(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_repository: Repository, _point: RestorePoint, _purpose: str) -> object:
        raise ReadOnly("it is mounted read-only.")

    with monkeypatch.context() as changed:
        changed.setattr(holding, "hold", refuse)
        result = world.export()
    assert result.export.hold is None and "without a hold" in result.warnings[0]
    assert greeting(result.export.plan.socket) == b"NBDMAGIC"


def test_a_server_that_ignores_a_signal_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world.export().export
    assert made.pid is not None
    os.kill(made.pid, signal.SIGSTOP)
    monkeypatch.setattr(launch, "_STOP_WITHIN", 0.2)
    with contextlib.suppress(CbtError):  # its child may take longer than this
        world.end()
    monkeypatch.setattr(launch, "_STOP_WITHIN", 30.0)
    world.end()
    assert exports.running("x") is None
