# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions that are held up between two requests, beside others whose clocks are wrong: no restore point loses what it names."""

from __future__ import annotations

import concurrent.futures

import pytest
from samples import UUID
from stepping import Actor, OneAfterAnother, SteppedStore
from test_late_replacements import CONTENTS, World

from _cbt.repository.format import names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import condemned, leases, publishing, relocation
from _cbt.repository.sharing.collector import Collector
from _cbt.repository.sharing.leases import ASTRAY, LAPSE, STEADY, Lease
from _cbt.repository.sharing.relocation import Move, relocate

GRACE = 86400.0


class Held(World):
    """A world in which ``self.half`` is announced, and in which time passes at ``real``, whatever the store's clock says.

    The hosts notice by one of their clocks. The other one stands still, as in a virtual machine that is paused.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
        super().__init__()
        self.real = self.store.clock
        monkeypatch.setattr(leases, "boot_clock", lambda: self.real if clock == "boot" else 0.0)
        monkeypatch.setattr(
            leases, "wall_clock", lambda: self.real * {"boot": 0, "wall": 1, "wall set back": -1}[clock]
        )
        monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
        self.pass_time(LAPSE)
        self.retain()
        self.pass_time(GRACE)

    def pass_time(self, seconds: float, astray: float = 0.0) -> None:
        """Time passes; what follows is done with a clock that is wrong."""
        self.real += seconds
        self.store.clock = self.real + astray

    def retain(self, repository: Repository | None = None, grace: float = GRACE) -> None:
        """One collection."""
        repository = repository or self.repository()
        lease = Lease(repository, "retention")
        Collector(repository, lease.now(), grace).collect(lease, confirm_shrink=True)
        lease.release()

    def collector(self, grace: float = GRACE) -> Actor:
        """A collector that halts before each request."""
        return Actor("retention", lambda actor: self.retain(self.stepped(actor), grace))

    def mover(self) -> Actor:
        """A session that has the point name ``self.half``."""

        def work(actor: Actor) -> None:
            repository = self.stepped(actor)
            relocate(Lease(repository, "compaction"), repository.point(UUID, self.point.id), self._moves())

        return Actor("compaction", work)

    def stepped(self, actor: Actor) -> Repository:
        """The repository as one actor sees it."""
        return Repository(SteppedStore(self.store, actor), "0" * 32)  # type: ignore[arg-type]

    def pardon(self) -> None:
        """A collector takes the announcement back, because a draft names ``self.half`` for a moment."""
        lease = Lease(self.repository(), "backup")
        with publishing._drafting(lease) as draft:
            draft(self.on_half())
            self.retain()
        lease.release()
        assert self.half.name not in condemned.announced(self.repository())

    def on_half(self) -> RestorePoint:
        """The point as it is with its first disk in ``self.half``, its map stored and its manifest not."""
        repository = self.repository()
        return relocation._stored(repository, self.point, relocation._maps_of(repository, self.point, self._moves()))

    def _moves(self) -> relocation.Moves:
        return {self.old.id: [Move(0, 2, self.half, 0)]}


def until(actor: Actor, request: str) -> None:
    """Let an actor go on until just before a request that begins with this, or its end."""
    while not actor.over and not actor.pending.startswith(request):
        actor.step()


def to_the_end(actor: Actor) -> None:
    """Let an actor go on to its end."""
    while not actor.over:
        actor.step()
    assert actor.error is None


@pytest.fixture(params=["boot", "wall", "wall set back"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch, request.param)


def test_a_collector_that_was_held_up_after_its_second_look_deletes_nothing(world: Held) -> None:
    collector = world.collector()
    until(collector, "put doomed")
    until(collector, "list trash")
    world.pass_time(LAPSE + ASTRAY + 1)
    lease = Lease(world.repository(), "backup")
    with publishing._drafting(lease) as draft:
        draft(world.on_half())
        world.retain()  # which takes the announcement back, and deletes the list of the collector that seems dead
    lease.release()
    assert world.move(2, world.half)
    to_the_end(collector)
    world.check(exists=True)


def test_a_collector_keeps_all_maps_of_a_point_that_needs_what_another_one_is_about_to_delete(world: Held) -> None:
    """A late manifest names a pack on the list of a collector. Its session is delayed before it gives the point back its old map."""
    world.pardon()
    first: list[Actor] = []

    def days() -> None:
        world.pass_time(LAPSE + ASTRAY + 1)
        world.retain(grace=300)
        world.pass_time(301)
        first.append(world.collector(300))
        until(first[0], "put doomed")
        until(first[0], "delete packs/")
        world.hang(f"trash/{UUID}/{world.point.id}", "list", others)

    def others() -> None:
        """The list of the first collector stays valid, while the second one finds what the late manifest replaced."""
        world.retain(grace=300)
        world.pass_time(301)
        second = world.collector(300)
        until(second, "put doomed")
        while world.half.name in world.store.objects:
            first[0].step()
        to_the_end(second)
        to_the_end(first[0])

    world.hang(f"points/{UUID}/{world.point.id}/manifest.json", "put", days)
    assert not world.move(2, world.half)
    world.check(exists=True)


def test_a_point_does_not_get_a_map_back_that_a_collector_is_about_to_delete(world: Held) -> None:
    """Another session moved the point before the late manifest appeared. A collector, which saw that, has yet to delete the former map."""
    world.pardon()
    collectors: list[Actor] = []

    def days() -> None:
        world.pass_time(LAPSE + ASTRAY + 1)
        world.retain()
        assert world.move(4, world.pack(CONTENTS))
        for _night in range(2):
            world.pass_time(GRACE)
            collectors.append(world.collector())
            until(collectors[-1], "put doomed")
            until(collectors[-1], "delete p")
            to_the_end(collectors[0])

    world.hang(f"points/{UUID}/{world.point.id}/manifest.json", "put", days)
    assert not world.move(2, world.half)
    to_the_end(collectors[1])
    world.check(exists=True)


@pytest.mark.parametrize("held_up", [0.0, LAPSE / 2 - 1])
def test_the_list_of_a_collector_is_kept_regardless_of_another_ones_clock(held_up: float, world: Held) -> None:
    collector = world.collector()
    until(collector, "delete packs/")
    world.pass_time(held_up, astray=ASTRAY)
    world.pardon()
    world.pass_time(0)
    assert not world.move(2, world.half)
    to_the_end(collector)
    world.check(exists=True)


@pytest.mark.parametrize("held_up", [0.0, STEADY - 60])
def test_a_draft_counts_regardless_of_its_writers_clock(held_up: float, world: Held) -> None:
    collector, mover = world.collector(), world.mover()
    until(collector, "put doomed")
    world.pardon()
    world.pass_time(1, astray=-ASTRAY)
    until(mover, f"put points/{UUID}/{world.point.id}/manifest.json")
    world.pass_time(held_up)
    to_the_end(collector)
    to_the_end(mover)
    world.check(exists=True)
    assert world.half.name in publishing.needed(world.repository(), world.repository().point(UUID, world.point.id))


def test_a_draft_that_is_locked_counts_for_nothing_once_it_is_old(world: Held) -> None:
    world.pardon()
    mover = world.mover()
    until(mover, "list condemned")
    mover.crash()
    world.store.locks = dict.fromkeys(world.store.list(names.DRAFTS), float("inf"))
    for _night in range(2):
        world.pass_time(LAPSE + ASTRAY + GRACE)
        world.retain()
    assert list(world.store.list(names.DRAFTS))
    assert world.half.name not in world.store.objects


@pytest.mark.parametrize("held_up", [0.0, STEADY - 60])
def test_a_draft_is_kept_regardless_of_the_collectors_clock(held_up: float, world: Held) -> None:
    collector, mover = world.collector(), world.mover()
    until(collector, "put doomed")
    world.pardon()
    until(mover, f"put points/{UUID}/{world.point.id}/manifest.json")
    world.pass_time(held_up, astray=ASTRAY)
    world.retain()
    world.pass_time(1)
    to_the_end(collector)
    to_the_end(mover)
    world.check(exists=True)
    assert world.half.name in publishing.needed(world.repository(), world.repository().point(UUID, world.point.id))


def held_up_after_the_look(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have days pass, in which what no manifest names is deleted, once a session has looked whether all it names is there.

    Then it asks for the time, which it did before only when it put the draft.
    """
    moment, asked = leases.moment, []

    def late() -> leases.Moment:
        asked.append(None)
        if len(asked) == 2:
            monkeypatch.setattr(leases, "moment", moment)
            for _night in range(3):
                world.pass_time(GRACE + LAPSE + ASTRAY)
                world.retain()
            assert world.half.name not in world.store.objects
        return moment()

    monkeypatch.setattr(leases, "moment", late)


def test_a_session_that_was_held_up_after_it_looked_replaces_nothing(
    world: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pardon()
    held_up_after_the_look(world, monkeypatch)
    assert not world.move(2, world.half)
    world.check(exists=True)
    assert world.repository().point(UUID, world.point.id) == world.point


def test_a_writer_that_was_held_up_after_it_looked_looks_again(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    world.pardon()
    moved, again = world.on_half(), []
    lease = Lease(world.repository(), "backup")
    held_up_after_the_look(world, monkeypatch)
    put = world.store.put

    def checked(name: str, data: bytes, replace: bool = True) -> bool:
        done = put(name, data, replace)
        if name.startswith("points/"):
            world.check(exists=True)
        return done

    def stored(missed: set[str]) -> RestorePoint:
        again.append(missed)
        return world.point  # what it needs is there

    monkeypatch.setattr(world.store, "put", checked)
    assert publishing.publish(lease, moved, stored) == world.point
    assert len(again) == 1


def test_drafts_of_dead_sessions_go(world: Held) -> None:
    mover = world.mover()
    until(mover, "list condemned")
    mover.crash()
    assert list(world.store.list(names.DRAFTS))
    world.pass_time(LAPSE + ASTRAY - 60)
    world.retain()
    assert list(world.store.list(names.DRAFTS))
    world.pass_time(120)
    world.retain()
    assert not list(world.store.list(names.DRAFTS))


@pytest.mark.parametrize(("lapsed", "stays"), [(-60, True), (60, True), (GRACE - 60, True), (GRACE + 60, False)])
def test_a_lease_stays_visible_for_a_grace_period_after_it_lapsed(lapsed: float, stays: bool, world: Held) -> None:
    lease = Lease(world.repository(), "backup")
    world.pass_time(LAPSE + lapsed)
    world.retain()
    assert [each.id for each in leases.lease_holders(world.repository())] == [lease.id] * stays
