# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A storm in one process: sessions of the engine on several hosts, whose requests alternate and hang by chance while clocks are set.

Time is simulated. The clocks of the store and of each host step by chance, and any two part by no more than three hours. Times of objects
are set by the store or by the hosts. A session halts before each request and before each reply; hours or days may pass there, but for
what the format asks of a live process: a request that deletes a pack, a map or a file takes less than 15 minutes. Equal seeds
make equal histories.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import functools
import math
import random
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from samples import UUID, encoded, point, point_id, record
from stepping import Actor, OneAfterAnother, SteppedStore
from stores_for_tests import MemoryStore

from _cbt.errors import CbtError, DamagedObject, ObjectMissing, Refused
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep import retention as retaining
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.repository.dedup import index
from _cbt.repository.format import manifests, names, packs
from _cbt.repository.format.manifests import Key, RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import PackRef
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import holding, holds, leases, publishing, relocation, removals
from _cbt.repository.sharing.leases import Lease
from _cbt.repository.sharing.relocation import Move

CONTENTS = [bytes([value]) * BLOCK_SIZE for value in (1, 2, 3, 4)]
_PIECES = ((0, 1, 2, 3), (0, 1), (2, 3), (0,), (3,))  # the blocks that a pack may hold
GRACE = 86400.0
_APART = 3 * 3600.0  # seconds by which any two clocks part, at the most
_DELETION = 900.0  # seconds that a request which deletes a pack, a map or a file takes, at the most
_SPANS = (1, 60, 200, 300, 800, 1000, 1700, 1900, 3600, 10000, 12500, 13000, 43000, 86000, 87000, 100000)
_CHANGES = ("done put points/", "done put holds/", "done delete p")  # what may make a point untrue
_LATE = re.compile("put points/.*/manifest.json|put trash/")
_MANIFEST = "points/*/manifest.json"
# Requests, as they are halted at, before or after which much depends on what others do.
_PUBLISHING = (
    "put points/*.map",
    "put drafts/*",
    "done put drafts/*",
    "done list condemned",
    "done size packs/*",
    "done size points/*.map",
    f"put {_MANIFEST}",
    f"put {_MANIFEST}",
    f"put {_MANIFEST}",
    f"done put {_MANIFEST}",
)
_REMOVING = (
    f"get {_MANIFEST}",
    "put trash/*",
    "done put trash/*",
    "list holds/*",
    f"delete {_MANIFEST}",
    f"delete {_MANIFEST}",
    f"delete {_MANIFEST}",
    f"done delete {_MANIFEST}",
)
_KINDS = (  # what is done in a storm
    ("backup", "move", "move", "remove", "undelete", "collect", "collect", "hold"),
    ("backup", "collect"),
    ("move", "move", "collect"),
    ("move", "remove"),
    ("move", "remove", "undelete"),
    ("remove", "undelete", "collect"),
    ("move", "move", "remove", "hold"),
)
_SETTLING = (  # of a session that makes good what a late manifest did
    f"put {_MANIFEST}",
    f"put {_MANIFEST}",
    f"done put {_MANIFEST}",
    f"done get {_MANIFEST}",
    "list trash/*",
    "done list trash/*",
    "done list removed/*",
    "done list condemned",
    "put trash/*",
    "list holds/*",
    f"delete {_MANIFEST}",
)
_WINDOWS: dict[str, tuple[str, ...]] = {
    "backup": _PUBLISHING,
    "move": (*_PUBLISHING, f"get {_MANIFEST}", f"done get {_MANIFEST}", "list trash/*", "list removed/*"),
    "undelete": (*_PUBLISHING, f"size {_MANIFEST}", "delete trash/*"),
    "remove": _REMOVING,
    "hold": ("put holds/*", "done put holds/*", "list condemned", "done size packs/*", f"get {_MANIFEST}"),
    "collect": (
        "put doomed/*",
        "done put doomed/*",
        "list points",
        "done list points",
        "list holds",
        "list trash",
        "done list trash",
        "done list trash",
        "delete packs/*",
        "delete points/*",
        "delete trash/*",
        "delete doomed/*",
    ),
}


_NIGHT = GRACE + 13000
_SOON = (1, 60, 200, 800)
_LOOKS = ("done list condemned", "done size packs/*", f"put {_MANIFEST}")
_LISTED = ("list points", "done list points", "done list trash", "delete packs/*")
_END, _DEATH = "the end", "its death"  # of the session: no request is called so
# What happens in a row more often than by chance: a kind of session that halts at a request, or that does all of its work;
# seconds that pass; of several, any. The session that halts goes on by chance after the phrase.
_PHRASES: tuple[tuple[Any, ...], ...] = (
    # Others move and delete what a session read, or stored, before its draft is there.
    ("backup", ("put points/*.map", "done put points/*.map"), _NIGHT, "collect", _NIGHT, "collect"),
    ("move", "put points/*.map", "backup", "move", _NIGHT, "collect", _NIGHT, "collect"),
    # A manifest hangs across a grace period, and the session is held up again while it looks at what was lost.
    (
        "move",
        f"put {_MANIFEST}",
        _NIGHT,
        "collect",
        _NIGHT,
        "collect",
        _SETTLING,
        ("move", "remove"),
        _NIGHT,
        "collect",
    ),
    ("move", f"put {_MANIFEST}", "remove", (60, 13000, _NIGHT), "undelete", _SETTLING, ("remove", "undelete"), _NIGHT),
    ("move", f"put {_MANIFEST}", _NIGHT, "collect", _NIGHT, "collect", f"put {_MANIFEST}", "remove"),
    # A point is removed, brought back and moved beside a session that moves it, or that brings it back late.
    ("move", f"done put {_MANIFEST}", "remove", "undelete", "move", _END),
    ("remove", "undelete", f"put {_MANIFEST}", _NIGHT, "collect", _END, "move"),
    # A removal is held up, and its entry grows old while the point is moved or brought back.
    ("remove", ("done put trash/*", "list holds/*"), (13000, _NIGHT), ("undelete", "collect"), _NIGHT, "collect"),
    ("remove", ("put trash/*", "list holds/*"), ("hold", "move"), _NIGHT, "collect", _NIGHT, "collect"),
    # A point is brought back beside a removal.
    ("remove", "undelete", _LOOKS, _SOON, "remove", _NIGHT, "collect"),
    # A collector beside a session that looks, or that begins between its list and its deletions.
    (("backup", "move", "undelete"), _LOOKS, _SOON, "collect"),
    ("collect", "put doomed/*", _LISTED, _SOON, "collect", ("backup", "move"), _NIGHT),
    ("collect", "put doomed/*", _LISTED, (1900, 13000), "collect", ("backup", "move"), _NIGHT),
    # What a dead session leaves.
    ("move", ("done put drafts/*", "done put points/*.map"), _DEATH, _NIGHT, "collect"),
    ("collect", ("done put doomed/*", "delete packs/*"), _DEATH, _NIGHT, "collect"),
    # A held point is moved or removed, and a hold comes between the looks of a session.
    ("hold", ("move", "remove"), _NIGHT, "collect", _NIGHT, "collect"),
    (
        "hold",
        ("put holds/*", "done put holds/*", "list condemned"),
        ("move", "remove"),
        _NIGHT,
        "collect",
        _NIGHT,
        "collect",
    ),
)

# Half of the time would go there: the same few are read over and over.
_decoded = functools.lru_cache(1024)(manifests.decode)


@dataclasses.dataclass
class Host:
    """The clocks of a host: one of the two measures a span truly, and the other one is set or stands still."""

    wall: float
    stands_still: bool = False


@dataclasses.dataclass
class Removal:
    """What was asked of a point, and when: to be removed, or else to be there. ``end`` is infinite until it is over."""

    removes: bool
    began: float
    end: float = math.inf
    done: bool = False


class _Store(SteppedStore):
    """A store that halts before each reply as well, for a session that is held up after its request is carried out."""

    _IN_TWO = ("put", "get", "size", "modified", "delete")

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in _Store._IN_TWO:
            return found

        def replied(each: str, *arguments: Any, **options: Any) -> Any:
            try:
                return found(each, *arguments, **options)
            finally:
                self.halt(f"done {name} {each}")

        return replied

    def entries(self, prefix: str) -> Iterator[Any]:
        yield from super().entries(prefix)
        self.halt(f"done list {prefix}")


class Session:
    """Somebody at work on a host."""

    def __init__(self, world: Storm, host: Host, kind: str) -> None:
        self.host, self.kind = host, kind
        self.late: set[str] = set()  # what appeared late: what it does wrong is made good before the end
        self.since = world.real
        self._world = world
        world.at = host

        def work(actor: Actor) -> None:
            repository = Repository(_Store(world.store, actor), "0" * 32)  # type: ignore[arg-type]
            with contextlib.suppress(ObjectMissing):
                getattr(world, f"_{kind}")(repository)

        self.actor = Actor(kind, work)

    @property
    def at_deletion(self) -> bool:
        """Whether it is about to delete a pack, a map or a file."""
        name = self.actor.pending.removeprefix("delete ")
        return name != self.actor.pending and names.is_collectable(name)

    def go_on(self, until: Callable[[], bool]) -> None:
        """Go on to where it is to halt."""
        pending, began = self.actor.pending, self.since
        if self._world.real > began and _LATE.match(pending):
            self.late.add(pending.removeprefix("put "))
            self._world.late |= self.late if self.kind == "move" else set()
        self._world.turn(self.host)
        self.actor.runs_on = lambda: self._world.sees_no_fault(self.actor.pending) and not until()
        self.actor.step()
        self.since = self._world.real


def _reached(session: Session, request: str, times: int = 1) -> Callable[[], bool]:
    """Whether a session is at a request of this pattern, for the so-manieth time from now on."""
    left = [times + fnmatch.fnmatchcase(session.actor.pending, request)]

    def reached() -> bool:
        left[0] -= fnmatch.fnmatchcase(session.actor.pending, request)
        return left[0] <= 0

    return reached


class Storm:
    """A repository of points of the same four blocks, which lie in many packs, and sessions that back up, move, remove, bring back and collect."""

    def __init__(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.random = random.Random(seed)
        self.store = MemoryStore()
        self.store.objects["repository.json"] = b""
        self.real = 2e9
        self.clients_set_times = self.random.random() < 0.3
        self.store_wall = 0.0
        self.kinds = self.random.choice(_KINDS)
        self.renews = self.random.random() < 0.2
        self.hosts = [Host(0.0, self.random.random() < 0.3) for _host in range(3)]
        self.at = self.hosts[0]
        self.blocks: dict[str, tuple[PackRef, tuple[int, ...]]] = {}  # of each pack that was ever stored
        self.sessions: list[Session] = []
        self.asked: dict[Key, list[Removal]] = {}
        self.late: set[str] = set()  # manifests that blocks were moved in by a request that hung
        self.leases: dict[Lease, Host] = {}  # that a thread of their process renews, whatever else hangs
        self.held: list[holds.Hold] = []
        self.numbers = 0
        self.fault: AssertionError | None = None
        self.told: list[str] = []
        monkeypatch.setattr(leases, "boot_clock", lambda: 0.0 if self.at.stands_still else self.real)
        monkeypatch.setattr(leases, "wall_clock", lambda: self.real + (0.0 if self.at.stands_still else self.at.wall))
        monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
        monkeypatch.setattr(manifests, "decode", _decoded)
        monkeypatch.setattr(index, "_WAIT", 0)  # for one that is halted while it fills the index
        ids = random.Random(seed)
        monkeypatch.setattr(secrets, "token_hex", lambda count: ids.randbytes(count).hex())
        monkeypatch.setattr(packs, "new_id", lambda: ids.randbytes(16))
        self._prepare()

    def _prepare(self) -> None:
        """Points, and packs that nothing needs, some of which are announced long enough ago."""
        for _point in range(self.random.choice((1, 1, 1, 2, 3))):
            self._work("backup")
        for _pack in range(self.random.randrange(1, 4)):
            self._pack(self.plain(), self.random.choice(_PIECES))
        if self.random.random() < 0.7:
            self._pass(4 * 3600)
            self._work("collect")
            self._pass(GRACE + self.random.choice((100, 4 * 3600)))

    def plain(self) -> Repository:
        """The repository as a process opens it that is not held up."""
        return Repository(self.store, "0" * 32)  # type: ignore[arg-type]

    def turn(self, host: Host) -> None:
        """What follows is done by a host."""
        self.at = host
        self.store.clock = self.real + (host.wall if self.clients_set_times else self.store_wall)

    # What somebody may be doing.

    def _pack(self, repository: Repository, blocks: tuple[int, ...]) -> PackRef:
        writer = repository.writer()
        writer.append([encoded(CONTENTS[block]) for block in blocks])
        (ref,) = writer.finish().values()
        self.blocks[ref.name] = (ref, blocks)
        return ref

    def _mapped(self, repository: Repository, key: Key, fresh: bool) -> RestorePoint:
        """A point whose maps are stored; with ``fresh`` all of its blocks are as well, else it uses some that are there."""
        builder, refs = MapBuilder(4 * BLOCK_SIZE), {}
        pieces = [(0, 1, 2, 3)] if self.random.random() < 0.5 else [(0, 1), (2, 3)]
        for piece in pieces:
            there = [
                ref
                for name, (ref, blocks) in self.blocks.items()
                if blocks == piece and name in self.store.objects and not fresh
            ]
            ref = self.random.choice(there) if there else self._pack(repository, piece)
            refs[ref.id] = ref
            builder.put(piece[0], len(piece), ref.id, 0)
        name = names.map_file("vda", f"{self.random.getrandbits(32):08x}")
        files = repository.put_files(names.point_folder(*key), {name: builder.finish(refs).encode()})
        disk = dataclasses.replace(record(size=4 * BLOCK_SIZE), map=files[name])
        return dataclasses.replace(point(1), id=key[1], uuid=key[0], disks=(disk,), repository="0" * 32)

    def _backup(self, repository: Repository) -> None:
        self.numbers += 1
        key = (UUID, point_id(self.numbers))
        with self._asked(key, removes=False) as asked, self._lease(repository, "backup") as lease:
            made = self._mapped(repository, key, fresh=False)
            publishing.publish(lease, made, lambda _missed: self._mapped(repository, key, fresh=True))
            asked.done = True

    def _move(self, repository: Repository) -> None:
        """Have a point name other packs that hold the same blocks."""
        with self._lease(repository, "compaction") as lease:
            made = self._any(repository)
            for ref in repository.read_packs(made, made.disks[0]):
                blocks = self.blocks[ref.name][1]
                others = [each for name, each in self.blocks.items() if name in self.store.objects and name != ref.name]
                useful = [each for each in others if set(each[1]) & set(blocks)]
                if useful:
                    to, there = self.random.choice(useful)
                    both = [block for block in blocks if block in there]
                    moves = [Move(blocks.index(block), 1, to, there.index(block)) for block in both]
                    relocation.relocate(lease, made, {ref.id: relocation.joined(moves)})
                    return

    def _remove(self, repository: Repository) -> None:
        with self._lease(repository, "retention") as lease:
            made = self._any(repository)
            with self._asked(made.key, removes=True) as asked:
                asked.done = not retaining._remove(lease, made)

    def _undelete(self, repository: Repository) -> None:
        removed = sorted({names.parsed(name).point for name in self.store.objects if name.startswith("trash/")})  # type: ignore[union-attr]
        if not removed:
            return
        key = self.random.choice(removed)
        with self._asked(key, removes=False) as asked, contextlib.suppress(Refused):
            retention(repository, RetentionRequest(grace=GRACE, undelete=(key[1],), collect=False))
            asked.done = True

    def _collect(self, repository: Repository) -> None:
        retention(repository, RetentionRequest(grace=GRACE, confirm_shrink=True))

    def _hold(self, repository: Repository) -> None:
        with contextlib.suppress(DamagedObject, Refused):
            self.held.append(holding.hold(repository, self._any(repository), "export"))

    def _any(self, repository: Repository) -> RestorePoint:
        found = sorted(name for name in self.store.objects if name.endswith("/manifest.json"))
        if not found:
            raise ObjectMissing("There is no point.")
        return repository.point(*names.parsed(self.random.choice(found)).point)  # type: ignore[union-attr]

    @contextlib.contextmanager
    def _lease(self, repository: Repository, operation: str) -> Iterator[Lease]:
        lease = Lease(repository, operation)
        self.leases[lease] = self.at
        try:
            yield lease
        finally:
            self.leases.pop(lease, None)
        lease.release()

    @contextlib.contextmanager
    def _asked(self, key: Key, removes: bool) -> Iterator[Removal]:
        asked = Removal(removes, self.real)
        self.asked.setdefault(key, []).append(asked)
        yield asked
        asked.end = self.real

    # How it goes on.

    def _begin(self, kind: str) -> Session:
        self.told.append(f"{self.real:.0f} {kind} begins")
        session = Session(self, self.random.choice(self.hosts), kind)
        self.sessions.append(session)
        return session

    def _go_on(self, session: Session, until: Callable[[], bool]) -> None:
        if not session.actor.over and not until():
            session.go_on(until)
        self._check_points()
        if session.actor.over and session in self.sessions:
            self.sessions.remove(session)
            # While a session that hung has yet to make good what it did, what is needed may be unknown, and nothing is deleted.
            assert session.actor.error is None or any(each.late for each in self.sessions), self._story(
                session.kind, str(session.actor.error)
            )
        self.told.append(
            f"{self.real:.0f} {session.kind} {'ends' if session.actor.over else f'waits: {session.actor.pending}'}"
        )

    def _work(self, kind: str) -> None:
        self._go_on(self._begin(kind), lambda: False)

    def _pass(self, seconds: float) -> None:
        for each in list(self.sessions):
            if self.real + seconds - each.since >= _DELETION:
                self._go_on(each, lambda each=each: not each.at_deletion)  # type: ignore[misc]
        self.real += seconds
        for host in self.hosts:
            if self.random.random() < 0.5:
                host.wall = self._astray()
        if self.random.random() < 0.5:
            self.store_wall = self._astray()
        self.told.append(f"{self.real:.0f} after {seconds} s")
        if self.renews:
            self._renew()

    def _renew(self) -> None:
        """Processes that are not halted as a whole give a sign of life."""
        for lease, host in list(self.leases.items()):
            if self.random.random() < 0.1:
                self.leases.pop(lease)
                continue
            self.turn(host)
            stepped, lease.repository = lease.repository, self.plain()
            lease.renew()
            lease.repository = stepped

    def _astray(self) -> float:
        return self.random.choice((0.0, _APART, self.random.uniform(0, _APART)))

    def _halting(self) -> Callable[[], bool]:
        """Where the next session halts."""
        session = self.sessions[-1]
        if self.random.random() < 0.25:
            left = [self.random.randrange(1, 40)]

            def counted() -> bool:
                left[0] -= 1
                return left[0] < 0

            return counted
        windows = _SETTLING if session.late else _WINDOWS[session.kind]
        return _reached(session, self.random.choice(windows), self.random.choice((1, 1, 1, 2, 3)))

    def _nights(self) -> None:
        """Others do all of their work while some are held up."""
        for _night in range(self.random.choice((1, 2, 2, 3, 4))):
            if self.random.random() < 0.4:
                self._work(self.random.choice(self.kinds))
            if self.random.random() < 0.2:
                self._work(self.random.choice(self.kinds))
            self._pass(self.random.choice((300, 2000, 13000, GRACE + 100, GRACE + 13000, GRACE + 13000)))
            if self.random.random() < 0.8:
                self._work("collect")

    def _say(self, phrase: tuple[Any, ...]) -> None:
        """Have happen what a phrase says."""
        said = [self.random.choice(each) if isinstance(each, tuple) else each for each in phrase]
        for each, then in zip(said, [*said[1:], ""]):
            if not isinstance(each, str):
                self._pass(each)
            elif " " in each and self.sessions:
                session = self.sessions[-1]
                if each == _DEATH:
                    session.actor.crash()
                    self.sessions.remove(session)
                else:
                    self._go_on(session, _reached(session, each))
            elif " " in str(then):
                self._begin(each)
            elif " " not in each:
                self._work(each)

    def run(self, rounds: int = 10) -> None:
        """The storm, and what must be true after it."""
        if self.random.random() < 0.6:
            self._say(self.random.choice(_PHRASES))
            rounds //= 2
        for _round in range(rounds):
            choice = self.random.random()
            if len(self.sessions) < 3 and choice < 0.5:
                self._begin(self.random.choice(self.kinds))
            elif self.sessions:
                self.sessions.append(self.sessions.pop(self.random.randrange(len(self.sessions))))
            if self.sessions:
                self._go_on(self.sessions[-1], self._halting())
            if self.sessions and self.random.random() < 0.5:
                self._nights()
            elif self.random.random() < 0.7:
                self._pass(self.random.choice(_SPANS))
        while self.sessions:
            self._go_on(self.random.choice(self.sessions), lambda: False)
        self._check_end()

    # What must be true.

    def _wrong(self, made: RestorePoint) -> str:
        """What is not as it must be of a point that exists or is held; empty if it is whole and true."""
        repository = self.plain()
        try:
            extents = repository.read_map(made, made.disks[0].target)
        except (DamagedObject, ObjectMissing) as error:
            return str(error)
        found: dict[int, int] = {}
        for run in extents.runs():
            if run.pack.name not in self.store.objects:
                return f"{run.pack.name} is gone"
            ref, blocks = self.blocks[run.pack.name]
            found.update({run.first + index: blocks[run.ordinal + index] for index in range(run.count)})
        return "" if found == {block: block for block in range(4)} else f"its blocks are {found}"

    def sees_no_fault(self, pending: str) -> bool:
        """Whether every point is as it must be, after a request that may have changed that."""
        if not pending.startswith(_CHANGES):
            return True
        try:
            self._check_points()
        except AssertionError as error:
            self.fault = error
        return self.fault is None

    def _check_points(self) -> None:
        """Every point is whole and true, but for those of which a session that hung is still about to say so."""
        if self.fault is not None:
            raise self.fault
        late = {name for each in self.sessions for name in each.late}
        for name in [each for each in self.store.objects if each.endswith("/manifest.json") and each not in late]:
            made = self.plain().point(*names.parsed(name).point)  # type: ignore[union-attr]
            assert not (why := self._wrong(made)), self._story(name, why)
        for each in self.held:
            assert each.point is not None
            assert not (why := self._wrong(each.point)), self._story(each.name, why)

    def _check_end(self) -> None:
        self._check_points()
        repository = self.plain()
        for key, asked in self.asked.items():
            exists = names.manifest(*key) in self.store.objects
            assert not removals.vanished(repository, key), self._story(key[1], "it vanished")
            must = self._must_exist(asked)
            if must and any(each.removes for each in asked) and names.manifest(*key) in self.late:
                must = None  # who was late cannot distinguish a point that was brought back from one that was removed
            assert must in (None, exists), self._story(key[1], f"it must {'' if must else 'not '}exist")
        self._check_leftovers()

    @staticmethod
    def _must_exist(asked: list[Removal]) -> bool | None:
        """Whether a point must exist, given what was asked in which order; None if either is right."""
        done = [each for each in asked if each.done]
        removed, back = [each for each in asked if each.removes], [each for each in done if not each.removes]
        if not removed:
            return True
        if any(all(other.end < each.began for other in removed) for each in back):
            return True
        tried = [each for each in asked if not each.removes]
        if any(each.removes and all(other.end < each.began for other in tried) for each in done):
            return False
        return None

    def _check_leftovers(self) -> None:
        """Once all is quiet, nothing is left but what points need."""
        for each in self.held:
            holds.release(self.plain(), each.id)
        self.held.clear()
        for _night in range(4):
            self._pass(GRACE + 5 * 3600)
            self._work("collect")
        repository, needed = self.plain(), set()
        for made in repository.points_of().points:
            needed |= {names.manifest(*made.key), *publishing.resting_on(repository, made)}
        folders = ("packs/", "points/", "drafts/", "doomed/", "condemned/", "leases/", "trash/", "holds/")
        left = {name for name in self.store.objects if name.startswith(folders)}
        assert left == needed, self._story("", f"left {sorted(left - needed)}, missing {sorted(needed - left)}")

    def _story(self, what: str, why: str) -> str:
        return "\n".join([f"{what}: {why}", *self.told[-40:]])


def storm(seed: int) -> None:
    """One storm. Raises AssertionError if a point is lost, untrue, or is there although it was removed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Storm(seed, monkeypatch)
        try:
            made.run()
        finally:
            for each in made.sessions:
                with contextlib.suppress(CbtError, AssertionError):
                    each.actor.crash()
