"""Writers, retention, undelete, holds, compaction, healing and collectors on one repository, in any order of single requests, ended at any of them.

After each request every published point is true, what is held is true, and no removed point is lost before its time or while it is held; once all is
quiet and released, nothing is left that no point needs, and nothing is stored twice. The one assumption about time: a
request of a live process takes less than the grace period, and than half a lease's lapse.

In some histories clocks are astray: that of the store and those of the hosts jump at any time, so that they part by up to three hours, or clients
set the times of objects; and a request that replaces or deletes a manifest hangs for as long as it likes, after which its process goes on to its
end before anything else happens. There the grace period is a day.

KVM_CBT_SHARING is the number of histories tried.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import soaks
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from samples import OTHER_UUID, UUID, encoded, point, record
from stepping import Actor, OneAfterAnother, SteppedStore
from stores_for_tests import MemoryStore

from _cbt.errors import CbtError, ObjectMissing
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep import compaction, merging
from _cbt.operations.upkeep.healing import heal
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.dedup import dedup
from _cbt.repository.format import manifests, names, packs
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import PackRef
from _cbt.repository.packs.writer import BlockAddress
from _cbt.repository.records.damage import PackDamage
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import condemned, holding, holds, leases, publishing
from _cbt.repository.sharing.holds import Hold
from _cbt.repository.sharing.leases import LAPSE, Lease

BLOCKS = 3
CONTENTS = [bytes([value]) * BLOCK_SIZE for value in range(6)]
DIGESTS = [hashlib.sha256(content).digest() for content in CONTENTS]
ACTORS = 4
HOSTS = 3
JUMP = leases.ASTRAY / 2  # seconds by which a clock is wrong at the most, so that two of them part by twice as much
# Before which requests it matters most that others do something.
HALTS = [
    "manifest.json",
    "manifest.json",
    "put condemned",
    "put doomed",
    "put drafts",
    "put points",
    "put trash",
    "put holds",
    "list holds",
    "delete packs",
    "delete points",
    "delete",
    "list drafts",
    "list",
    "size",
    "get",
]

Disk = tuple[int, ...]  # the content of each block, by number; 0 is zeroes


class World:
    """The store, and what each restore point must hold."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.grace = 0.0
        self.astray = self.clients_set_times = False
        self.real = self.store.clock
        self.offsets = [0.0] * (HOSTS + 1)  # by which the clocks of the hosts, and last that of the store, are wrong
        self.host = 0  # that of who is at work
        self.appeared: dict[str, float] = {}  # entries of the trash, since when in truth
        self.held: dict[str, Hold] = {}  # by id, from when they were given until they are released
        self.truth: dict[str, Disk] = {}
        self.numbers = 0
        self.index: dict[int, list[tuple[PackRef, int]]] = {}
        self._proven: dict[bytes, dict[str, bytes]] = {}

    def wall_clock(self) -> float:
        """The time by the clock of the host that is at work."""
        return self.real + self.offsets[self.host]

    def work_on(self, host: int) -> None:
        """What follows is done by a host: objects that appear have the time of its clock, or of the store's."""
        self.host = host
        self.store.clock = self.wall_clock() if self.clients_set_times else self.real + self.offsets[-1]

    def note(self, value: int, placement: BlockAddress, written: Mapping[bytes, PackRef]) -> None:
        """Remember for other backups where a content was stored, as hooks do, whatever becomes of it."""
        self.index.setdefault(value, []).insert(0, (written[placement.pack], placement.ordinal))

    def untrue(self, manifest: bytes, name: str) -> str | None:
        """What a point lacks to be restored to its bytes. What was proven is looked at again only where its objects have changed."""
        objects = self._proven.get(manifest)
        if objects is None:
            objects = self._prove(manifests.decode(manifest, name))
            if isinstance(objects, str):
                return objects
            self._proven[manifest] = objects
        gone = [each for each, data in objects.items() if self.store.objects.get(each) is not data]
        return f"{gone} of {name}" if gone else None

    def _prove(self, found: RestorePoint) -> Any:
        repository = Repository(self.store, "0" * 32)
        objects = {}
        blocks: dict[int, bytes] = {}
        try:
            for file in found.stored_files:
                repository.get_file(found, file)
                objects[f"{found.folder}/{file.name}"] = self.store.objects[f"{found.folder}/{file.name}"]
            for run in repository.read_map(found, "vda").runs():
                blocks.update(enumerate(repository.reader.blocks(run.pack, run.ordinal, run.count), run.first))
                objects[run.pack.name] = self.store.objects[run.pack.name]
        except CbtError as error:
            return f"{found.id}: {error}"
        holds = tuple(
            DIGESTS.index(hashlib.sha256(blocks[index]).digest()) if index in blocks else 0 for index in range(BLOCKS)
        )
        return objects if holds == self.truth[found.id] else f"{found.id} holds {holds} and not {self.truth[found.id]}"

    def published(self) -> dict[str, bytes]:
        """Manifests by name."""
        return {name: data for name, data in self.store.objects.items() if name.endswith("/manifest.json")}

    def removed(self) -> dict[str, tuple[str, bytes]]:
        """Trash entries by name, with the name their manifest had."""
        found = {name: data for name, data in self.store.objects.items() if name.startswith("trash/")}
        return {name: (names.manifest(*name.split("/")[1:3]), data) for name, data in found.items()}

    def recorded(self) -> set[str]:
        """Names that the manifests of points recorded as removed had."""
        found = [
            (name.split("/")[1], json.loads(data)["body"]["points"])
            for name, data in self.store.objects.items()
            if name.startswith("removed/")
        ]
        return {names.manifest(uuid, each) for uuid, ids in found for each in ids}

    def now(self) -> str:
        """The time for a manifest."""
        return datetime.datetime.fromtimestamp(self.real, datetime.UTC).isoformat(timespec="microseconds")


def back_up(repository: Repository, world: World, uuid: str, changes: dict[int, int], anew: bool = False) -> None:
    """A backup as the engine makes it, but for the hypervisor: built on the latest point, content that is stored anywhere not stored again.

    With ``anew`` it is, and all of the disk with it, as that of damaged blocks is.
    """
    lease = Lease(repository, "backup")
    leaving = condemned.pending_deletion(repository)
    before = repository.points_of(uuid).points
    base = repository.read_map(before[-1], "vda") if before else None
    disk = list(world.truth[before[-1].id]) if before else [0] * BLOCKS
    builder, writer = MapBuilder(BLOCKS * BLOCK_SIZE, base), repository.writer()
    stored: dict[int, BlockAddress] = {}
    refs: dict[bytes, PackRef] = {}
    for block, value in sorted({**dict(enumerate(disk if anew else ())), **changes}.items()):
        disk[block] = value
        places = [(ref, ordinal) for ref, ordinal in world.index.get(value, []) if ref.name not in leaving and not anew]
        if not value:
            builder.zero(block, 1)
        elif places:
            ref, ordinal = places[0]
            refs[ref.id] = ref
            builder.put(block, 1, ref.id, ordinal)
        else:
            stored[value] = writer.append([encoded(CONTENTS[value], "lz4")])
            builder.put(block, 1, *stored[value])
    written = writer.finish()
    refs.update(written)
    for value, placement in stored.items():
        world.note(value, placement, refs)
    extents = builder.finish(refs)
    world.numbers += 1
    made = point(
        1,
        id=f"20260101T000000Z-{world.numbers:08x}",
        uuid=uuid,
        created=world.now(),
        parent=before[-1].id if before else None,
    )
    world.truth[made.id] = tuple(disk)

    def with_files() -> RestorePoint:
        suffix = secrets.token_hex(4)
        files = repository.put_files(
            made.folder, {f"vda-{suffix}.map": extents.encode(), f"domain-{suffix}.xml": b"<domain/>"}
        )
        return dataclasses.replace(
            made,
            disks=(record(size=BLOCKS * BLOCK_SIZE, map=files[f"vda-{suffix}.map"]),),
            files={"domain.xml": files[f"domain-{suffix}.xml"]},
        )

    def again(lost: set[str]) -> RestorePoint:
        nonlocal extents
        builder, writer = MapBuilder(BLOCKS * BLOCK_SIZE, extents), repository.writer()
        for run in extents.runs():
            if run.pack.name in lost:
                for block in range(run.first, run.stop):
                    builder.put(block, 1, *writer.append([encoded(CONTENTS[disk[block]], "lz4")]))
        written = writer.finish()
        extents = builder.finish(written)
        return with_files()

    publishing.publish(lease, with_files(), again)
    lease.release()


def mend(repository: Repository) -> None:
    """Healing as it is done after a backup, of all packs of which a block is doubted."""
    lease = Lease(repository, "healing")
    doubted = {}
    for each in repository.points_of(UUID).points:
        with contextlib.suppress(ObjectMissing):
            doubted.update(
                {ref.id: PackDamage(frozenset({0, 1}), "doubted") for ref in repository.read_map(each, "vda").packs}
            )
            break  # what later points store anew is not doubted
    heal(lease, UUID, doubted)
    lease.release()


def take_hold(repository: Repository, world: World, point: RestorePoint) -> None:
    """Hold a point, whatever it was when it was chosen."""
    made = holding.hold(repository, point, "export")
    world.held[made.id] = made


class Sharing(RuleBasedStateMachine):
    """Any history."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.actors: list[Actor] = []
        self.published: dict[str, bytes] = {}
        self.ever: set[str] = set()  # names of all manifests there were
        self.alone: dict[
            str, bool
        ] = {}  # ids of all holds there were, and whether no removal of their points can have been under way
        self.hosts: dict[Actor, int] = {}
        self.begun = 0

    @initialize(
        grace=st.sampled_from([0, 0, 100, 86400]),
        clocks=st.sampled_from(["right", "right", "astray", "set by clients"]),
        values=st.lists(st.integers(1, 5), min_size=BLOCKS, max_size=BLOCKS),
    )
    def first_point(self, grace: int, clocks: str, values: list[int]) -> None:
        self.world.astray, self.world.clients_set_times = clocks != "right", clocks == "set by clients"
        self.world.grace = 86400 if self.world.astray else grace
        self._begin("backup", lambda repository: back_up(repository, self.world, UUID, dict(enumerate(values))))
        self.run_to_its_end(0)

    # What may happen.

    def room(self) -> bool:
        return len(self.actors) < ACTORS

    @precondition(room)
    @rule(
        uuid=st.sampled_from([UUID, UUID, OTHER_UUID]),
        changes=st.dictionaries(st.integers(0, BLOCKS - 1), st.integers(0, 5), max_size=2),
        anew=st.sampled_from([False, False, True]),
    )
    def backup_begins(self, uuid: str, changes: dict[int, int], anew: bool) -> None:
        self._begin("backup", lambda repository: back_up(repository, self.world, uuid, changes, anew))

    @precondition(room)
    @rule()
    def healing_begins(self) -> None:
        self._begin("healing", mend)

    @precondition(room)
    @rule(last=st.sampled_from([0, 1, 1, 2, -1]), below=st.sampled_from([None, 100]))
    def retention_begins(self, last: int, below: int | None) -> None:
        self._begin(
            "retention",
            lambda repository: retention(repository, self._request(rules=Rules(last=last), compact_below=below)),
        )

    @precondition(lambda self: self.room() and self.world.removed())
    @rule(number=st.integers(0, 9))
    def undelete_begins(self, number: int) -> None:
        wanted = sorted({name.split("/")[2] for name in self.world.removed()})
        each = wanted[number % len(wanted)]
        self._begin(
            "undelete", lambda repository: retention(repository, self._request(undelete=(each,), collect=False))
        )

    @precondition(lambda self: self.room() and self.world.published())
    @rule(number=st.integers(0, 9))
    def hold_begins(self, number: int) -> None:
        found = sorted(self.world.published().items())
        name, data = found[number % len(found)]
        self._begin("hold", lambda repository: take_hold(repository, self.world, manifests.decode(data, name)))

    @precondition(lambda self: self.room() and self.world.held)
    @rule(number=st.integers(0, 9))
    def release_begins(self, number: int) -> None:
        each = sorted(self.world.held)[number % len(self.world.held)]
        del self.world.held[each]
        self._begin("release", lambda repository: holds.release(repository, each))

    @precondition(lambda self: self.actors)
    @rule(number=st.integers(0, ACTORS - 1), requests=st.integers(1, 25))
    def goes_on(self, number: int, requests: int) -> None:
        for _request in range(requests):
            if number < len(self.actors) and not self._step(self.actors[number]):
                return

    @precondition(lambda self: self.actors)
    @rule(number=st.integers(0, ACTORS - 1), kind=st.sampled_from(HALTS))
    def goes_on_until(self, number: int, kind: str) -> None:
        """To just before its next request of a kind, which is where it matters that others do something."""
        if number < len(self.actors):
            actor = self.actors[number]
            while self._step(actor) and not (
                actor.pending.startswith(kind)
                or (actor.pending.startswith(("put", "delete")) and actor.pending.endswith(kind))
            ):
                pass

    @precondition(lambda self: self.actors)
    @rule(number=st.integers(0, ACTORS - 1))
    def run_to_its_end(self, number: int) -> None:
        if number < len(self.actors):
            while self._step(self.actors[number]):
                pass

    @precondition(lambda self: self.actors)
    @rule(number=st.integers(0, ACTORS - 1))
    def killed(self, number: int) -> None:
        if number < len(self.actors):
            actor = self.actors.pop(number)
            actor.crash()

    @rule(seconds=st.sampled_from([1, 101, LAPSE / 3, LAPSE + 1, 86401, 86401]))
    def time_passes(self, seconds: float) -> None:
        """Sessions may sleep as long as they like, but a request that is under way ends in time."""
        for actor in list(self.actors):
            while self._must_end(actor, seconds) and self._step(actor):
                pass
        self.world.real += seconds

    @precondition(lambda self: self.world.astray)
    @rule(clock=st.integers(0, HOSTS), wrong=st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]))
    def a_clock_jumps(self, clock: int, wrong: float) -> None:
        """It may have been set, or its host was halted."""
        self.world.offsets[clock] = wrong * JUMP

    @precondition(lambda self: self.world.astray and self.actors)
    @rule(
        number=st.integers(0, ACTORS - 1),
        last=st.sampled_from([0, 1, -1]),
        below=st.sampled_from([None, 100]),
        heals=st.booleans(),
    )
    def a_manifest_hangs(self, number: int, last: int, below: int | None, heals: bool) -> None:
        """The next one that is put or deleted, or an entry of the trash, for days in which others remove points, move blocks and reclaim space."""
        if heals and self.room():
            self.healing_begins()
            number = len(self.actors) - 1
        if number >= len(self.actors):
            return
        actor = self.actors[number]
        while self._step(actor) and not self._may_hang(actor):
            pass
        for _night in range(3 if actor in self.actors else 0):
            self._begin(
                "retention",
                functools.partial(retention, request=self._request(rules=Rules(last=last), compact_below=below)),
            )
            self.run_to_its_end(len(self.actors) - 1)
            self.time_passes(self.world.grace + LAPSE)
        if actor in self.actors:
            self._step(actor)

    def _must_end(self, actor: Actor, seconds: float) -> bool:
        kind, _space, name = actor.pending.partition(" ")
        manifest = name.startswith("points/") and name.endswith("/manifest.json")
        final = (kind == "put" and manifest) or (kind == "delete" and name.startswith(("packs/", "points/")))
        if manifest and self.world.astray:
            return False
        return final and self.world.real + seconds - actor.halted_at >= min(LAPSE / 2, self.world.grace or LAPSE)

    def _hung(self, actor: Actor) -> bool:
        """Whether what it waits with is carried out so late that it has to be made good."""
        return self._may_hang(actor) and self.world.real - actor.halted_at >= LAPSE / 2

    def _may_hang(self, actor: Actor) -> bool:
        return actor.pending.startswith("put trash/") or actor.pending.endswith("/manifest.json")

    # What must hold.

    @invariant()
    def all_is_true(self) -> None:
        self._check()

    def _check(self) -> None:
        published, removed = self.world.published(), self.world.removed()
        for name, data in published.items():
            assert (wrong := self.world.untrue(data, name)) is None, wrong
        for entry, (name, data) in removed.items():
            since = self.world.appeared.setdefault(entry, self.world.real)
            if self.world.real - since < self.world.grace - 4 * JUMP * self.world.astray:
                assert (wrong := self.world.untrue(data, name)) is None, f"in the trash: {wrong}"
        self._check_held(published, removed)
        recoverable = {name for name, _data in removed.values()}
        assert not self.world.grace or {*self.published} - {*published} <= recoverable, (
            "a point went without an entry in the trash"
        )
        self.ever |= {*published}
        assert self.ever - {*published} <= recoverable | self.world.recorded(), (
            "a point vanished as if the repository had gone back"
        )
        self.published = published

    def _check_held(self, published: Mapping[str, bytes], removed: Mapping[str, tuple[str, bytes]]) -> None:
        """What a hold keeps is there, and its point is published unless a removal had begun before: then it is in the trash."""
        going = {name for name, _data in removed.values()}
        for name in self.world.store.objects:
            if name.startswith("holds/"):
                _folder, uuid, point_id, each = name.split("/")
                self.alone.setdefault(each, names.manifest(uuid, point_id) not in going)
        for each, hold in self.world.held.items():
            manifest = names.manifest(*hold.key)
            assert hold.name in self.world.store.objects and hold.point is not None
            assert (wrong := self.world.untrue(manifests.encode(hold.point), manifest)) is None, f"held: {wrong}"
            assert manifest in (published if self.alone[each] and not self.world.astray else {*published, *going}), (
                "a held point was removed"
            )

    def teardown(self) -> None:
        try:
            while self.actors:
                self.run_to_its_end(0)
            repository = Repository(self.world.store, "0" * 32)
            self.world.held.clear()
            for hold in holds.listed(repository):
                holds.release(repository, hold.id)
            self.world.offsets = [0.0] * (HOSTS + 1)
            for below in (100, 100, None, None):  # what the last compaction leaves behind goes in two runs
                request = self._request(rules=Rules(last=-1), compact_below=below)
                self.world.real += max(self.world.grace, LAPSE) + LAPSE + leases.ASTRAY + 1
                self._begin("retention", functools.partial(retention, request=request))
                self.run_to_its_end(0)
            self._check()
            for name in repository.store.list("hooks"):
                repository.store.delete(name)
            found = repository.points_of().points
            needed = {name for each in found for name in publishing.needed(repository, each)}
            packs = {ref for each in found for ref in repository.read_map(each, "vda").packs}
            stored = [
                directory.digest(ordinal)
                for directory in map(repository.reader.directory, packs)
                for ordinal in range(len(directory))
            ]
            assert len(stored) == len(set(stored)), "a block is stored twice"
            assert {*self.world.store.objects} - needed - {*self.world.published()} - {
                *self.world.store.list("removed")
            } == {"collected.json"}
        finally:
            for actor in self.actors:
                actor.crash()
            self.actors.clear()

    # How it is done.

    def _request(self, **fields: Any) -> RetentionRequest:
        return RetentionRequest(grace=self.world.grace, allow_empty=True, confirm_shrink=True, **fields)

    def _begin(self, name: str, work: Any) -> None:
        actor = Actor(name, lambda actor: work(Repository(SteppedStore(self.world.store, actor), "0" * 32)))  # type: ignore[arg-type]
        self.hosts[actor] = self.begun % HOSTS
        self.begun += 1
        self.actors.append(actor)

    def _step(self, actor: Actor) -> bool:
        """One request; False once the actor is done."""
        changes = actor.pending.startswith(("put", "delete"))
        hung = self._hung(actor)
        self.world.work_on(self.hosts[actor])
        try:
            actor.step()
            while hung and not actor.over:
                actor.step()
        except BaseException:
            self.actors.remove(actor)
            raise
        actor.halted_at = self.world.real
        if changes:
            self._check()
        if actor.over:
            self.actors.remove(actor)
            # A backup may find that its base was removed and collected, a hold that its point was.
            # Whoever reads all manifests may find that one was replaced again and again.
            assert (
                actor.error is None
                or actor.name in ("undelete", "backup", "hold")
                or isinstance(actor.error, ObjectMissing)
            ), actor.error
        return not actor.over


def test_a_writer_sees_what_a_collector_is_about_to_delete_even_where_the_announcement_was_taken_back() -> None:
    repository = Repository(MemoryStore(), "0" * 32)
    world = World()
    world.store = repository.store  # type: ignore[assignment]
    back_up(repository, world, UUID, {0: 1})
    made = repository.points_of().points[0]
    pack = next(name for name in publishing.needed(repository, made) if name.startswith("packs/"))
    assert publishing.missing(repository, made) == set()
    condemned.condemn(repository, pack)
    assert publishing.missing(repository, made) == {pack}
    condemned.list_for_deletion(repository, "1" * 16, [pack])
    condemned.reprieve(repository, pack)
    assert publishing.missing(repository, made) == {pack}


@contextlib.contextmanager
def one_after_another(
    tasks: Iterator[Any], make_worker: Callable[[], Any], _workers: int, _control: Any
) -> Iterator[Iterator[Any]]:
    """As ``ordered_results``, in the thread that asks."""
    with make_worker() as work:
        yield map(work, tasks)


class NoHooks:
    """In place of a local index, which would remember other histories: so few blocks are found without hooks."""

    def __init__(self, _repository: Repository) -> None:
        pass

    def refresh(self) -> None:
        """There is nothing to take in."""

    @contextlib.contextmanager
    def lookup(self) -> Iterator[Callable[[Any], list[PackRef]]]:
        """Finds nothing."""
        yield lambda _block_ids: []


@pytest.mark.soak("sharing")
def test_points_stay_true_whatever_happens_in_whatever_order(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds: list[Sharing] = []

    class Here(Sharing):
        def __init__(self) -> None:
            super().__init__()
            worlds[:] = [self]
            # The same history has the same ids, so that it goes the same way when it is tried again.
            chance = random.Random(0)
            monkeypatch.setattr(packs, "new_id", lambda: chance.randbytes(16))
            monkeypatch.setattr(secrets, "token_hex", lambda length: chance.randbytes(length).hex())
            monkeypatch.setattr(secrets, "randbelow", chance.randrange)

    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
    for module in (compaction, merging):
        monkeypatch.setattr(module, "ordered_results", one_after_another)
    monkeypatch.setattr(merging, "HookIndex", NoHooks)
    # Changes hooks only, which nothing here reads.
    monkeypatch.setattr(dedup, "tidy", lambda _repository, _points: (0, 0))

    def wall_clock() -> float:
        return worlds[0].world.wall_clock()

    monkeypatch.setattr(leases, "boot_clock", lambda: worlds[0].world.real)
    monkeypatch.setattr(leases, "wall_clock", wall_clock)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=soaks.count("sharing"), stateful_step_count=60, deadline=None, suppress_health_check=checks
        ),
    )
