# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several copies into one repository at once: every point that one of them reports is whole, and nothing blocks retention."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soaks
from engine_history import FILES, EngineHistory
from histories import History
from samples import UUID
from stepping import Actor, OneAfterAnother, SteppedStore
from stores_for_tests import MemoryStore

from _cbt.errors import RepositoryError
from _cbt.operations.copy import CopyRequest, CopyResult, copy
from _cbt.operations.point.new_point import StoringOptions
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.dedup import index
from _cbt.repository.format import names
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import leases, publishing
from _cbt.repository.sharing.leases import LAPSE

ROUNDS = soaks.count("copies")
OPTIONS = StoringOptions(compression="none", workers=1)
DEST = "11" * 16


class World:
    """A repository with two points, and an empty one that others copy to."""

    def __init__(self) -> None:
        self.source = EngineHistory()
        for turn in range(2):
            for block in range(4):
                self.source.disk.write(block + turn, 10 * turn + block + 1)
            self.source.backup()
        self.store = MemoryStore()
        self.store.objects["repository.json"] = b""
        self.results: list[CopyResult] = []

    def dest(self, store: Any = None) -> Repository:
        """The destination as another process opens it."""
        return Repository(store or self.store, DEST)

    def take(self, store: Any = None, dedup: str = "repository") -> None:
        """Copy all points, and keep what the copy reports."""
        source = Repository(self.source.store, "00" * 16)
        self.results.append(
            copy(source, self.dest(store), CopyRequest(options=dataclasses.replace(OPTIONS, dedup=dedup)))
        )

    def begin(self, dedup: str = "repository") -> Actor:
        """A copy that is halted before each of its requests to the destination."""
        return Actor("copy", lambda actor: self.take(SteppedStore(self.store, actor), dedup))

    def untrue(self) -> list[str]:
        """Points of the destination that do not restore to what the source has."""
        found = History()
        found.store, found.fresh = self.store, self.dest  # type: ignore[method-assign]
        found.truth = self.source.truth
        wrong = [*self.dest().points_of().damaged, *found.untrue(), *found.damaged()]
        for each in self.dest().points_of().points:
            wrong += [name for name, file in each.files.items() if self.dest().get_file(each, file) != FILES[name]]
        return wrong

    def check_end(self) -> None:
        """All that was reported is whole, and retention leaves only what is needed."""
        points = set(self.source.truth)
        for result in self.results:
            assert not result.failed
            assert {each.point.id for each in result.copied} | {each.id for each in result.present} == points
        assert {each.id for each in self.dest().points_of().points} == (
            points if self.results else {each.id for each in self.dest().points_of().points}
        )
        assert not self.untrue()
        for _run in range(2):
            self.store.clock += 2 * LAPSE
            retention(self.dest(), RetentionRequest(grace=0.0))
        assert not self.untrue()
        found = self.dest().points_of().points
        needed = {name for each in found for name in publishing.needed(self.dest(), each)}
        left = {
            name
            for name in self.store.objects
            if name.startswith(("packs/", "points/", "drafts/", "doomed/", "condemned/"))
        }
        assert left == needed | {names.manifest(each.uuid, each.id) for each in found}


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pool, so that each actor runs in one thread; no wait for a local index that another one fills."""
    monkeypatch.setattr(index, "_WAIT", 0)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests of an actor come from one thread, and time passes as the store tells."""
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
    monkeypatch.setattr(leases, "boot_clock", lambda: 0.0)


def halted(requests: int, dedup: str, meanwhile: Callable[[World], None]) -> bool:
    """A copy does so many requests, then another one all of its work, then the first one the rest. False if there was no rest."""
    world = World()
    actor = world.begin(dedup)
    for _request in range(requests):
        actor.step()
    rest = not actor.over
    meanwhile(world)
    while not actor.over:
        actor.step()
    assert actor.error is None, actor.error
    world.check_end()
    return rest


@pytest.mark.parametrize("dedup", ["repository", "none"])
def test_two_copies_both_report_whole_points_wherever_one_is_halted(dedup: str, one_thread: None) -> None:
    requests = 0
    while halted(requests, dedup, lambda world: world.take(dedup=dedup)):
        requests += 1
    assert requests > 40


@pytest.mark.parametrize("seed", range(3))
def test_eight_copies_report_whole_points_in_any_order_of_their_requests(seed: int, one_thread: None) -> None:
    chance = random.Random(seed)
    world = World()
    actors = [world.begin() for _copy in range(8)]
    running = list(actors)
    while running:
        actor = chance.choice(running)
        for _request in range(chance.choice((1, 3, 20))):
            actor.step()
        running = [each for each in running if not each.over]
    assert [each.error for each in actors] == [None] * 8
    assert len(world.results) == 8
    world.check_end()


@pytest.mark.parametrize("seed", range(3))
def test_copies_that_are_killed_take_nothing_from_the_others(seed: int, one_thread: None) -> None:
    chance = random.Random(seed)
    world = World()
    running = [world.begin() for _copy in range(4)]
    killed = 0
    while running:
        actor = chance.choice(running)
        if killed < 3 and chance.random() < 0.02:
            actor.crash()
            killed += 1
        for _request in range(chance.choice((1, 3, 20))):
            actor.step()
        assert not world.untrue()
        running = [each for each in running if not each.over]
    world.check_end()


class Failing(MemoryStore):
    """Fails at a change of a kind as a server does that carries it out and loses the answer, or does not."""

    def __init__(self, like: MemoryStore, kind: str, done: bool) -> None:
        super().__init__()
        self.objects, self.times, self._kind, self._done = like.objects, like.times, kind, done

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        if name.endswith(self._kind):
            if self._done:
                super().put(name, data, replace)
            raise RepositoryError(f"Cannot write {name}: Input/output error.")
        return super().put(name, data, replace)


@pytest.mark.parametrize("done", [True, False])
def test_a_copy_that_fails_while_it_publishes_leaves_the_point_of_another(done: bool) -> None:
    world = World()
    failing = Failing(world.store, "manifest.json", done)
    others: list[None] = []
    put = failing.put

    def between(name: str, data: bytes, replace: bool = True) -> bool:
        if name.endswith("manifest.json") and not others:
            others.append(world.take())
        return put(name, data, replace)

    failing.put = between  # type: ignore[method-assign]
    with pytest.raises(RepositoryError):
        world.take(failing)
    world.check_end()


@pytest.mark.parametrize("done", [True, False])
def test_a_copy_that_fails_while_it_publishes_leaves_a_whole_point_or_none(done: bool) -> None:
    world = World()
    with pytest.raises(RepositoryError):
        world.take(Failing(world.store, "manifest.json", done))
    assert not world.untrue()
    world.take()
    world.check_end()


class Undeletable(MemoryStore):
    """Does not delete what has this in its name, and keeps what it was asked to delete."""

    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def delete(self, name: str) -> None:
        self.asked.append(name)
        if self.kind and self.kind in name:
            raise RepositoryError(f"Cannot delete {name}: Input/output error.")
        super().delete(name)


@pytest.mark.parametrize("kind", ["points/", "packs/", "drafts/"])
def test_clean_up_attempts_each_deletion_though_others_fail(kind: str) -> None:
    world = World()
    store = Undeletable()
    store.kind = kind
    put = store.put

    def refusing(name: str, data: bytes, replace: bool = True) -> bool:
        if name.startswith("drafts/"):
            put(name, data, replace)
            raise RepositoryError(f"Cannot write {name}: Input/output error.")
        return put(name, data, replace)

    store.put = refusing  # type: ignore[method-assign]
    with pytest.raises(RepositoryError):
        world.take(store, "none")
    stored = {name for name in store.objects if name.startswith(kind)}
    assert stored and stored <= set(store.asked)
    assert not [name for name in store.objects if not name.startswith((kind, "hooks/", "tmp/"))]


def test_names_of_two_copies_of_one_point_differ_in_everything_but_the_manifest() -> None:
    stored = []
    for _copy in range(2):
        world = World()
        world.take()
        stored.append({name for name in world.store.objects if name.startswith(("packs/", "points/", "hooks/"))})
    assert {name.rpartition("/")[2] for name in stored[0] & stored[1]} == {"manifest.json"}


@pytest.mark.parametrize("name", ["domain.xml", "kernel.0", "a" * 119, "a" * 120, "a" * 128])
def test_names_of_files_are_of_the_grammar_however_long_their_keys_are(name: str) -> None:
    own = names.check_file_name(names.own_file(name, "0123abcd"))
    assert own in (f"{name}-0123abcd", f"{name[:119]}-0123abcd")


@pytest.mark.parametrize("lost", ["map", "file", "cut file", "pack", "cut pack", "manifest"])
@pytest.mark.parametrize("check_only", [False, True])
def test_a_point_of_the_destination_that_is_not_whole_does_not_count_as_present(lost: str, check_only: bool) -> None:
    world = World()
    world.take()
    first = world.dest().points_of().points[0]
    name = {
        "map": first.object_name(first.disks[0].map),
        "manifest": names.manifest(first.uuid, first.id),
        "pack": world.dest().read_map(first, "vda").packs[0].name,
    }.get(lost.rpartition(" ")[2], first.object_name(first.files["domain.xml"]))
    whole = world.store.objects.pop(name)
    if lost.startswith("cut") or lost == "manifest":
        world.store.objects[name] = whole[:-1]
    source = Repository(world.source.store, "00" * 16)
    result = copy(source, world.dest(), CopyRequest(options=OPTIONS), check_only=check_only)
    assert first.id in {each.point.id for each in result.copied}
    assert first.id not in {each.id for each in result.present}
    if not check_only:
        world.results = [copy(source, world.dest(), CopyRequest(options=OPTIONS))]
        assert not world.results[0].copied
        world.check_end()


# With real processes.

CHILD = """
import os, signal, sys, json
from _cbt.operations.copy import CopyRequest, copy
from _cbt.operations.point.new_point import StoringOptions
from _cbt.repository.stores import directory
from _cbt.repository.repository import open_repository

source, dest, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
left = [at]

def counted(function):
    def call(self, *arguments, **options):
        left[0] -= self.location == dest
        if at and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(self, *arguments, **options)
    return call

for name in ("put", "upload", "delete", "list", "entries"):
    setattr(directory.DirectoryStore, name, counted(getattr(directory.DirectoryStore, name)))
print("ready", flush=True)
sys.stdin.readline()
result = copy(open_repository(source), open_repository(dest), CopyRequest(options=StoringOptions(compression="none", workers=2)))
print(json.dumps({"points": [each.point.id for each in result.copied] + [each.id for each in result.present], "failed": dict(result.failed)}))
"""


def processes(source: Path, dest: Path, at: list[int], cache: Path) -> list[dict[str, Any]]:
    """Copies that begin at the same time, each killed at a request to the destination, or not for 0; what those that ended report."""
    running = []
    for number, each in enumerate(at):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XDG_CACHE_HOME": str(cache / str(number)),
        }
        command = [sys.executable, "-c", CHILD, str(source), str(dest), str(each)]
        running.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running if not at[running.index(process)]] == [0] * at.count(0)
    return [json.loads(each) for each in told if each]


@pytest.mark.soak("copies")
def test_copies_in_processes_of_their_own_lose_no_point_some_of_them_killed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    history = EngineHistory()
    made = open_or_create(str(source))
    assert made is not None
    history.fresh = lambda: made  # type: ignore[method-assign]
    for turn in range(4):
        history.disk.write(turn, 100 + turn)
        history.backup()
    for number in range(ROUNDS):
        chance = random.Random(number)
        dest = tmp_path / f"dest{number}"
        open_or_create(str(dest))
        told = processes(
            source,
            dest,
            [0, 0, *(chance.randrange(1, 120) for _killed in range(number % 3))],
            tmp_path / f"cache{number}",
        )
        repository = open_repository(str(dest))
        assert len(told) >= 2
        for each in told:
            assert (sorted(each["points"]), each["failed"]) == (sorted(history.truth), {})
        assert {each.id for each in repository.points_of(UUID).points} == set(history.truth)
        assert [each.status for each in verify(repository, VerifyRequest(wanted=ALL), record=False)[0]] == ["ok"] * 4
        retention(repository, RetentionRequest(grace=0.0))
