# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A storm in one process: sessions of the engine on several hosts, whose requests alternate and hang by chance while clocks are set.

Time is simulated. The clocks of the store and of each host step by chance, and any two part by no more than three hours, or by minutes
if the grace period is short. Times of objects are set by the store or by the hosts. A session halts before each request and before each
reply; hours or days may pass there, but for what the format asks of a live process: a request that deletes a pack, a map or a file takes
less than 15 minutes. Some situations are more frequent than by chance (storm_phrases.py), and holds may be damaged
for a time (storm_damage.py). Points are checked after each request that changes them, and at the end. storm_promises.py
says what is checked of single requests, and storm_keys.py what is checked of key slots. Equal seeds make equal histories.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import functools
import itertools
import math
import random
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from samples import UUID, encoded, point, point_id, record
from stepping import Actor, OneAfterAnother, SteppedStore, ordered_results
from stores_for_tests import MemoryStore
from storm_damage import ACCIDENTS, Accidents
from storm_keys import KeySlots
from storm_phrases import (
    AHEAD,
    ALIVE,
    BACK,
    DEATH,
    GRACE,
    KINDS,
    PHRASES,
    SETTLING,
    SHORT,
    SPANS,
    TURNS,
    WINDOWS,
)
from storm_promises import Objects, Requests, is_manifest, retained

from _cbt.errors import CbtError, DamagedObject, ObjectMissing, Refused
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep import compaction, merging
from _cbt.operations.upkeep import retention as retaining
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.dedup import index
from _cbt.repository.format import manifests, names, packs
from _cbt.repository.format.manifests import Key, RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import PackRef
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import holding, holds, leases, publishing, relocation, removals
from _cbt.repository.sharing.leases import Lease
from _cbt.repository.sharing.relocation import Move, Moves

CONTENTS = [bytes([value]) * BLOCK_SIZE for value in (1, 2, 3, 4)]
_PIECES = ((0, 1, 2, 3), (0, 1), (2, 3), (0,), (3,))  # the blocks that a pack may hold
# Grace periods, and by how much any two clocks part with it at the most, in seconds.
_GRACES = ((GRACE, 3 * 3600.0),) * 4 + ((600.0, 300.0),)
_DELETION = 900.0  # seconds that a request which deletes a pack, a map or a file takes, at the most
_CHANGES = ("done put points/", "done put holds/", "done delete p")  # what may make a point untrue
_LATE = re.compile("put points/.*/manifest.json|put trash/")
_OF_POINT = re.compile("(?:points|trash|holds)/([^/]+)/([^/]+)")
_CLOCKS = ("",) * 4 + ("boot", "boot", "wall", "back")

# Half of the time would go there: the same few are read over and over.
_decoded = functools.lru_cache(1024)(manifests.decode)


@dataclasses.dataclass
class Host:
    """The clocks of a host: one of the two moves by as much as a span lasts, if only ``back``; the other one is set or stands still."""

    astray: float = 0.0
    clocks: str = ""

    def boot(self, real: float) -> float:
        """Return the reading of the clock that cannot be set."""
        return 0.0 if self.clocks in ("boot", "back") else real

    def wall(self, real: float) -> float:
        """Return the reading of the clock that may be set."""
        return {"": real + self.astray, "boot": real, "wall": 0.0, "back": -real}[self.clocks]


@dataclasses.dataclass
class Asked:
    """What was asked of a point, and in which order: to "remove" it, to "move" it, or to "be" there. ``end`` is infinite until it is over.

    ``stored`` is the manifest that a session which moves the point stored last. It is ``harmless`` once another session has
    replaced it, unless the session that stored it has read it since: it may be about to remove the point.
    """

    what: str
    began: int
    end: float = math.inf
    done: bool = False
    stored: bytes | None = None
    harmless: bool = False


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
                self._store.objects.asked(name, each)  # type: ignore[attr-defined]
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
        self.beside_late = False  # whether another session had yet to make good what it did late
        self.began = world.tick()
        self.asked: Asked | None = None
        self.requests = Requests()
        self.since = world.real
        self._world = world
        world.at = host

        def work(actor: Actor) -> None:
            repository = Repository(_Store(world.store, actor), "0" * 32)  # type: ignore[arg-type]
            with contextlib.suppress(ObjectMissing):
                getattr(world, f"_{kind}")(repository)

        self.actor = Actor(kind, work)

    @property
    def collects(self) -> bool:
        """Whether it is a run of retention that reclaims space."""
        return self.kind in ("collect", "retain", "compact")

    @property
    def at_deletion(self) -> bool:
        """Whether it is about to delete a pack, a map or a file."""
        name = self.actor.pending.removeprefix("delete ")
        return name != self.actor.pending and names.is_collectable(name)

    def note(self, name: str, data: bytes) -> None:
        """Note an object that it stores."""
        self.requests.put(name, self._world.tick())
        if is_manifest(name) and self.asked is not None:
            self.asked.stored = data if self.asked.what == "move" else None

    def go_on(self, until: Callable[[], bool]) -> None:
        """Go on to where it is to halt."""
        self._held_up(self.actor.pending)
        self._world.turn(self.host)
        self._world.current = self
        self.actor.runs_on = lambda: self._world.sees_no_fault(self) and not until()
        self.actor.step()
        self._world.current = None
        self.since = self._world.real

    def _held_up(self, pending: str) -> None:
        """Note what it does late."""
        if self._world.real > self.since:
            self._world.revived |= self.late
            if _LATE.match(pending):
                self.late.add(pending.removeprefix("put "))
                self._world.ever_late.add(pending.removeprefix("put "))


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
        self.real = 2e9
        self.order = itertools.count()  # of what is asked for and done
        self.current: Session | None = None
        self.store = MemoryStore()
        self.store.objects = Objects(self)
        self.store.objects["repository.json"] = b""
        self.grace, self.apart = self.random.choice(_GRACES)
        self.clients_set_times = self.random.random() < 0.3
        self.store_wall = 0.0
        self.kinds = self.random.choice(KINDS)
        self.renews = self.random.random() < 0.4
        self.hosts = [Host(0.0, self.random.choice(_CLOCKS)) for _host in range(3)]
        self.at = self.hosts[0]
        self.blocks: dict[str, tuple[PackRef, tuple[int, ...]]] = {}  # of each pack that was ever stored
        self.sessions: list[Session] = []
        self.asked: dict[Key, list[Asked]] = {}
        self.revived: set[str] = set()  # manifests that appeared late, and whose session was held up again after that
        self.leases: dict[Lease, Host] = {}  # that a thread of their process renews, whatever else hangs
        self.held: list[tuple[holds.Hold, int]] = []  # and in which order they were given
        self.ever_late: set[str] = set()  # manifests that appeared late at some time
        self.spared: dict[str, str] = {}  # by the name of a pack, the lease that spares it
        self.incomplete: set[str] = set()  # points that were removed while their manifest had yet to be made good
        self.unsettled: set[Key] = set()  # points whose removal ended before its second look at holds
        self.numbers = 0
        self.fault: AssertionError | None = None
        self.told: list[str] = []
        self.accidents = Accidents(self)
        self.slots: KeySlots | None = None
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(leases, "boot_clock", lambda: self.at.boot(self.real))
        monkeypatch.setattr(leases, "wall_clock", lambda: self.at.wall(self.real))
        monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
        monkeypatch.setattr(manifests, "decode", _decoded)
        monkeypatch.setattr(index, "_WAIT", 0)  # for one that is halted while it fills the index
        for module in (compaction, merging):
            monkeypatch.setattr(module, "ordered_results", ordered_results)
        monkeypatch.setattr(retaining, "remove_point", functools.partial(self._removed, retaining.remove_point))
        monkeypatch.setattr(relocation, "relocate", functools.partial(self._relocated, relocation.relocate))
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
        self.store.clock = self.real + (host.astray if self.clients_set_times else self.store_wall)

    def tick(self) -> int:
        """What comes next in the order of all that happens."""
        return next(self.order)

    def blame(self, name: str, why: str) -> None:
        """Note a fault, if there is one."""
        if why and self.fault is None:
            self.fault = AssertionError(self._story(name, why))

    # What somebody may be doing.

    def _pack(self, repository: Repository, blocks: tuple[int, ...]) -> PackRef:
        writer = repository.writer()
        writer.append([encoded(CONTENTS[block]) for block in blocks])
        (ref,) = writer.finish().values()
        self.blocks[ref.name] = (ref, blocks)
        return ref

    def _mapped(self, lease: Lease, key: Key, fresh: bool) -> RestorePoint:
        """A point whose maps are stored; with ``fresh`` all of its blocks are as well, else it uses some that are there."""
        builder, refs, repository = MapBuilder(4 * BLOCK_SIZE), {}, lease.repository
        pieces = [(0, 1, 2, 3)] if self.random.random() < 0.5 else [(0, 1), (2, 3)]
        for piece in pieces:
            there = [each for each in self._there() if each[1] == piece]
            again = fresh or not there or self.random.random() < 0.3
            ref = self._stored(lease, piece) if again else self._one_of(there)[0]
            refs[ref.id] = ref
            builder.put(piece[0], len(piece), ref.id, 0)
        name = names.map_file("vda", f"{self.random.getrandbits(32):08x}")
        files = repository.put_files(names.point_folder(*key), {name: builder.finish(refs).encode()})
        disk = dataclasses.replace(record(size=4 * BLOCK_SIZE), map=files[name])
        return dataclasses.replace(point(1), id=key[1], uuid=key[0], disks=(disk,), repository="0" * 32)

    def _blocks_of(self, ref: PackRef) -> tuple[int, ...]:
        """The blocks in a pack that exists, or that was looked at while it did."""
        if ref.name not in self.blocks:
            found = map(bytes, self.plain().reader.blocks(ref, 0, ref.blocks))  # type: ignore[arg-type]
            self.blocks[ref.name] = (ref, tuple(map(CONTENTS.index, found)))
        return self.blocks[ref.name][1]

    def _there(self) -> list[tuple[PackRef, tuple[int, ...]]]:
        return [each for name, each in self.blocks.items() if name in self.store.objects]

    def _one_of(self, found: list[tuple[PackRef, tuple[int, ...]]]) -> tuple[PackRef, tuple[int, ...]]:
        """Any of these packs, more often one that is about to be deleted."""
        going = [each for each in found if names.announcement(each[0].name) in self.store.objects]
        return self.random.choice(going if going and self.random.random() < 0.5 else found)

    def _stored(self, lease: Lease, blocks: tuple[int, ...]) -> PackRef:
        """A pack that is spared as long as a lease is renewed, unless the clock was set back since the last time."""
        ref = self._pack(lease.repository, blocks)
        name = f"leases/{lease.id}"
        if self.store.times.get(name, math.inf) <= self.store.times[ref.name]:
            self.spared[ref.name] = name
        return ref

    def _backup(self, repository: Repository) -> None:
        self.numbers += 1
        self._publish(repository, "backup", (UUID, point_id(self.numbers)))

    def _copy(self, repository: Repository) -> None:
        """Have a point exist that was there at some time, as a copy from another repository does."""
        self._publish(repository, "copy", self.random.choice(sorted(self.asked)))

    def _publish(self, repository: Repository, operation: str, key: Key) -> None:
        fails = self.random.random() < 0.3

        def again(_missed: set[str]) -> RestorePoint:
            if fails:
                raise ObjectMissing("The source is gone.")
            return self._mapped(lease, key, fresh=True)

        with self._asked(key, "be") as asked, self._lease(repository, operation) as lease:
            made = self._mapped(lease, key, fresh=False)
            publishing.publish(lease, made, again, yields=operation == "copy")
            asked.done = True

    def _move(self, repository: Repository, merges: bool = False) -> None:
        """Have a point name other packs that hold the same blocks."""
        with self._lease(repository, "compaction") as lease:
            made = self._any(repository)
            refs = repository.read_packs(made, made.disks[0])
            for ref in self.random.sample(refs, len(refs)):
                blocks = self._blocks_of(ref)
                useful = [each for each in self._there() if set(each[1]) & set(blocks) and each[0] != ref]
                if merges:
                    useful = [each for each in useful if names.announcement(each[0].name) not in self.store.objects]
                if useful or (ref.name in self.store.objects and not merges):
                    again = not merges and (not useful or self.random.random() < 0.5)
                    to, there = (self._stored(lease, blocks), blocks) if again else self.random.choice(useful)
                    both = [block for block in blocks if block in there]
                    moves = [Move(blocks.index(block), 1, to, there.index(block)) for block in both]
                    relocation.relocate(lease, made, {ref.id: relocation.joined(moves)})
                    return

    def _merge(self, repository: Repository) -> None:
        """Have a point name packs that were there before."""
        self._move(repository, merges=True)

    def _relocated(self, relocate: Callable[..., bool], lease: Lease, made: RestorePoint, moves: Moves) -> bool:
        with self._asked(made.key, "move"):
            return relocate(lease, made, moves)

    def _remove(self, repository: Repository) -> None:
        with self._lease(repository, "retention") as lease:
            retaining.remove_point(lease, self._any(repository))

    def _removed(self, remove: Callable[..., tuple[str, ...]], lease: Lease, made: RestorePoint) -> tuple[str, ...]:
        if any(names.manifest(*made.key) in each.late for each in self.sessions):
            self.incomplete.add("/".join(made.key))
        with self._asked(made.key, "remove") as asked:
            reasons = remove(lease, made)
            asked.done = not reasons
        return reasons

    def _undelete(self, repository: Repository) -> None:
        removed = sorted({names.parsed(name).point for name in self.store.objects if name.startswith("trash/")})  # type: ignore[union-attr]
        if not removed:
            return
        key = self.random.choice(removed)
        with self._asked(key, "be") as asked, contextlib.suppress(Refused):
            retention(repository, RetentionRequest(grace=self.grace, undelete=(key[1],), collect=False))
            asked.done = True

    def _collect(self, repository: Repository, rules: Rules | None = None, compact_below: int | None = None) -> None:
        """Reclaim space."""
        request = RetentionRequest(rules, grace=self.grace, confirm_shrink=True, compact_below=compact_below)
        result = retention(repository, request)
        if self.current is not None:
            self.blame("retention", retained(self, self.current, result))

    def _retain(self, repository: Repository) -> None:
        """Remove points by rules, and reclaim space."""
        self._collect(repository, Rules(last=self.random.choice((-1, 1, 2))))

    def _compact(self, repository: Repository) -> None:
        """Empty packs, and reclaim space."""
        self._collect(repository, compact_below=100)

    def _keys(self, repository: Repository) -> None:
        """Add a key slot, or remove one."""
        self.slots = self.slots or KeySlots(self._monkeypatch)
        self.slots.change(self.random, repository.store.halt)  # type: ignore[attr-defined]

    def _hold(self, repository: Repository) -> None:
        with contextlib.suppress(DamagedObject, Refused):
            given = holding.hold(repository, self._any(repository), "export")
            self.held.append((given, self.tick()))

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
    def _asked(self, key: Key, what: str) -> Iterator[Asked]:
        asked = Asked(what, self.tick())
        self.asked.setdefault(key, []).append(asked)
        if self.current is not None:
            self.current.asked = asked
        yield asked
        asked.end = self.tick()
        standing = self.store.objects.get(names.manifest(*key))
        looked = [each.asked for each in self.sessions if names.manifest(*key) not in each.requests.unread]
        for each in self.asked[key] if what == "be" and standing is not None else ():
            each.harmless |= each.end == math.inf and each.stored not in (None, standing) and each not in looked

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
        others = [each for each in self.sessions if each is not session]
        session.beside_late |= any(each.late or each.kind in ("remove", "retain") for each in others)
        if session.actor.over and session in self.sessions:
            self.sessions.remove(session)
            # While a session that hung has yet to make good what it did, what is needed may be unknown, and nothing is deleted.
            # The entry of a point that was removed before that stays for a grace period.
            error = str(session.actor.error)
            known = session.beside_late or any(f"trash/{each}" in error for each in self.incomplete)
            known |= self.accidents.explain(session, error)
            assert session.actor.error is None or known, self._story(session.kind, error)
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
                host.astray = self._astray()
        if self.random.random() < 0.5:
            self.store_wall = self._astray()
        self.told.append(f"{self.real:.0f} after {seconds} s")
        if self.renews:
            self._renew()

    def _renew(self) -> None:
        """Processes that are not halted as a whole give a sign of life."""
        for lease, host in list(self.leases.items()):
            if self.random.random() < 0.3:  # it comes too late, and now and then it was the last one
                if self.random.random() < 0.2:
                    self.leases.pop(lease)
                continue
            self.turn(host)
            stepped, lease.repository = lease.repository, self.plain()
            lease.renew()
            lease.repository = stepped

    def _change(self, what: str) -> None:
        """Change what all sessions depend on."""
        if what == ALIVE:
            self.renews = True
            return
        if what == SHORT:
            self.grace, self.apart = _GRACES[-1]
        self.store_wall = self.apart if what == AHEAD else 0.0
        for host in self.hosts:
            host.astray = self.store_wall

    def _astray(self) -> float:
        return self.random.choice((0.0, 0.0, self.apart, self.apart, self.random.uniform(0, self.apart)))

    def _halting(self) -> Callable[[], bool]:
        """Where the next session halts."""
        session = self.sessions[-1]
        if self.random.random() < 0.25:
            left = [self.random.randrange(1, 40)]

            def counted() -> bool:
                left[0] -= 1
                return left[0] < 0

            return counted
        windows = SETTLING if session.late else WINDOWS[session.kind]
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
        halted: list[Session] = []
        session = None
        for each, then in zip(said, [*said[1:], ""]):
            if not isinstance(each, str):
                self._pass(each)
            elif each in TURNS:
                session = halted[TURNS.index(each)]
            elif each in (ALIVE, AHEAD, BACK, SHORT):
                self._change(each)
            elif each in ACCIDENTS:
                self.accidents.happen(each)
            elif " " in each and session is not None:
                self._continue(session, each)
            elif " " in str(then) and then not in TURNS:
                session = self._begin(each)
                halted.append(session)
            else:
                self._work(each)
        self.accidents.end()

    def _continue(self, session: Session, until: str) -> None:
        """Let a session go on to a request, or end it where it is."""
        if until != DEATH:
            self._go_on(session, _reached(session, until))
        elif session in self.sessions:
            session.actor.crash()
            self.sessions.remove(session)
            self.unsettled.update(self._point_of(session.actor.pending))
            if self.random.random() < 0.7:
                drafts = [
                    name
                    for name in session.requests.stored
                    if name.startswith("drafts/") and name in self.store.objects
                ]
                self.store.locks.update(dict.fromkeys(drafts, math.inf))  # as the object lock of a bucket may

    @staticmethod
    def _point_of(request: str) -> list[Key]:
        """The point that a request is about, if it is about one."""
        return list(_OF_POINT.findall(request))

    def run(self, rounds: int = 10) -> None:
        """The storm, and what must be true after it."""
        if self.random.random() < 0.8:
            self._say(self.random.choice(PHRASES))
            rounds = self.random.choice((0, 0, 1, 3))
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
                self._pass(self.random.choice(SPANS))
        while self.sessions:
            self._go_on(self.random.choice(self.sessions), lambda: False)
        self._check_end()

    # What must be true.

    def wrong(self, made: RestorePoint) -> str:
        """What is not as it must be of a point that exists or is held; empty if it is whole and true."""
        try:
            with self.accidents.ended():
                extents = self.plain().read_map(made, made.disks[0].target)
        except (DamagedObject, ObjectMissing) as error:
            return str(error)
        found: dict[int, int] = {}
        for run in extents.runs():
            if run.pack.name not in self.store.objects:
                return f"{run.pack.name} is gone"
            blocks = self._blocks_of(run.pack)
            found.update({run.first + index: blocks[run.ordinal + index] for index in range(run.count)})
        return "" if found == {block: block for block in range(4)} else f"its blocks are {found}"

    def sees_no_fault(self, session: Session) -> bool:
        """Whether every point is as it must be, after a request that may have changed that."""
        pending = session.actor.pending
        if self.fault is not None or not pending.startswith(_CHANGES):
            return self.fault is None
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
            assert not (why := self.wrong(made)), self._story(name, why)
        for each, _order in self.held:
            assert each.point is not None
            assert not (why := self.wrong(each.point)), self._story(each.name, why)
        assert self.slots is None or not (why := self.slots.wrong()), self._story("repository.json", why)

    def _check_end(self) -> None:
        self._check_points()
        repository = self.plain()
        for key, asked in self.asked.items():
            name = names.manifest(*key)
            if name in self.store.objects.at:
                assert not removals.vanished(repository, key), self._story(key[1], "it vanished")
            exists, must = name in self.store.objects, self._must_exist(asked)
            if must is False and name in self.revived:
                must = (
                    None  # a collector takes a point that a late manifest had come back for one that was brought back
                )
            assert must in (None, exists), self._story(key[1], f"it must {'' if must else 'not '}exist")
        for each, _order in self.held:
            assert self._is_kept(each), self._story(each.name, "its point is gone")
        self._check_leftovers()

    def _is_kept(self, held: holds.Hold) -> bool:
        """Whether a held point exists, or can be brought back if the session that should do so has died."""
        if names.manifest(*held.key) in self.store.objects or held.key not in self.unsettled:
            return names.manifest(*held.key) in self.store.objects
        entries = [name for name in self.store.objects if name.startswith(names.trash_folder(*held.key))]
        kept = [manifests.decode(self.store.objects[name], names.manifest_kept_by(name)) for name in entries]
        return any(not self.wrong(each) for each in kept)

    @staticmethod
    def _must_exist(asked: list[Asked]) -> bool | None:
        """Whether a point must exist, given what was asked in which order; None if either is right.

        A session that moves a point cannot distinguish whether it was removed, or removed and brought back.
        """
        removed, tried = ([each for each in asked if each.what == what] for what in ("remove", "be"))
        moves = [each for each in asked if each.what == "move" and removed and not each.harmless]
        for back in [each for each in tried if each.done]:
            beside = any(each.began < back.began < each.end for each in moves)
            if not beside and all(each.end < back.began for each in removed):
                return True
        if any(each.done and all(other.end < each.began for other in tried) for each in removed):
            return False
        return None

    def _check_leftovers(self) -> None:
        """Once all is quiet, nothing is left but what points need."""
        for each, _order in self.held:
            holds.release(self.plain(), each.id)
        self.held.clear()
        for _night in range(4):
            self._pass(GRACE + 5 * 3600)
            self._work("collect")
        repository, needed = self.plain(), set()
        for made in repository.points_of().points:
            needed |= {names.manifest(*made.key), *publishing.resting_on(repository, made)}
        folders = ("packs/", "points/", "drafts/", "doomed/", "condemned/", "leases/", "trash/", "holds/")
        left = {name for name in self.store.objects if name.startswith(folders) and name not in self.store.locks}
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
            if made.slots is not None:
                made.slots.close()
