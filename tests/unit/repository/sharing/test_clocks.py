# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clocks that jump or disagree: a backup outlasts the grace period and two collections, and its restore point is whole all the same."""

from __future__ import annotations

import dataclasses

import pytest
from samples import UUID, encoded, point, record
from stores_for_tests import MemoryStore

from _cbt.grid import BLOCK_SIZE
from _cbt.repository.format import names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import condemned, leases, publishing
from _cbt.repository.sharing.collector import Collected, Collector
from _cbt.repository.sharing.leases import LAPSE, Lease

CONTENT = b"\x01" * BLOCK_SIZE


class World:
    """A store, a writer whose clock may be wrong where clients set the times of files, and a host that collects."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, behind: float = 0.0) -> None:
        self.store = MemoryStore()
        self.store.objects["repository.json"] = b""
        self.began = self.store.clock
        self.passed = self.step = self.wall = 0.0
        self.behind = behind
        self.stored_again: set[str] = set()
        monkeypatch.setattr(leases, "boot_clock", lambda: self.passed)
        monkeypatch.setattr(leases, "wall_clock", lambda: self.passed + self.wall)
        self.collecting()
        Repository(self.store, "0" * 32).publish(self._point(self._packs(), 2))

    def writing(self) -> Repository:
        """What follows is done by the writer."""
        self.store.clock = self.began + self.passed + self.step - self.behind
        return Repository(self.store, "0" * 32)

    def collecting(self) -> Repository:
        """What follows is done by the host that collects."""
        self.store.clock = self.began + self.passed + self.step
        return Repository(self.store, "0" * 32)

    def _packs(self) -> MapBuilder:
        writer = Repository(self.store, "0" * 32).writer()
        builder = MapBuilder(BLOCK_SIZE)
        builder.put(0, 1, *writer.append([encoded(CONTENT)]))
        self.written = dict(writer.finish())
        return builder

    def _point(self, builder: MapBuilder, number: int = 1) -> RestorePoint:
        repository, made = Repository(self.store, "0" * 32), point(number)
        mark = f"{len(self.store.objects):08x}"
        files = repository.put_files(
            names.point_folder(UUID, made.id), {f"vda-{mark}.map": builder.finish(self.written).encode()}
        )
        return dataclasses.replace(made, disks=(record(size=BLOCK_SIZE, map=files[f"vda-{mark}.map"]),))

    def begin(self) -> Lease:
        """The writer begins, and stores a pack after a minute."""
        lease = Lease(self.writing(), "backup")
        self.passed += 60
        self.writing()
        lease.renew()
        self.builder = self._packs()
        self.own = {ref.name for ref in self.written.values()}
        return lease

    def goes_on(self, lease: Lease, seconds: float) -> None:
        """The writer is at work, and renews its lease."""
        end = self.passed + seconds
        while self.passed < end:
            self.passed += 110
            self.writing()
            lease.renew()

    def collect(self, grace: float) -> Collected:
        """Retention, on another host."""
        self.passed += 1
        repository = self.collecting()
        lease = Lease(repository, "retention")
        try:
            return Collector(repository, lease.now(), grace).collect(lease, confirm_shrink=True)
        finally:
            lease.release()

    def publish(self, lease: Lease) -> None:
        """The writer ends."""
        self.writing()

        def again(missed: set[str]) -> RestorePoint:
            self.stored_again |= missed
            return self._point(self._packs())

        made = publishing.publish(lease, self._point(self.builder), again)
        lease.release()
        assert publishing.missing(self.collecting(), made) == set()
        assert self.collecting().points_of(UUID).points


GRACES = pytest.mark.parametrize("grace", [300.0, 86400.0])


@GRACES
def test_nothing_is_announced_or_stored_again_when_clocks_agree(monkeypatch: pytest.MonkeyPatch, grace: float) -> None:
    world = World(monkeypatch)
    lease = world.begin()
    assert world.collect(grace).condemned == 0
    world.goes_on(lease, grace + 60)
    assert world.collect(grace).deleted == 0
    world.publish(lease)
    assert not world.stored_again


@GRACES
def test_what_was_announced_while_a_lease_seemed_to_have_lapsed_is_not_deleted_while_it_lives(
    monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    world = World(monkeypatch)
    lease = world.begin()
    world.step += LAPSE + 60
    assert world.collect(grace).condemned == 1
    world.goes_on(lease, grace + 60)
    assert world.collect(grace).deleted == 0
    assert not condemned.announced(world.collecting())
    world.publish(lease)
    assert not world.stored_again


@GRACES
@pytest.mark.parametrize("behind", [2400.0, 10800.0])
def test_a_writer_whose_times_are_hours_behind_stores_again_what_was_deleted(
    monkeypatch: pytest.MonkeyPatch, grace: float, behind: float
) -> None:
    world = World(monkeypatch, behind)
    lease = world.begin()
    assert world.collect(grace).condemned == 1
    world.goes_on(lease, grace)
    assert world.collect(grace).deleted == 1
    world.publish(lease)
    assert world.stored_again == world.own


def test_a_session_whose_lease_is_deleted_while_it_is_renewed_stores_again_what_was_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    lease = world.begin()
    modified = world.store.modified

    def late(name: str) -> float:
        monkeypatch.setattr(world.store, "modified", modified)
        for _night in range(3):  # the store's clock jumps by days, and back
            world.step += LAPSE + 86400 + 60
            world.collect(86400.0)
        world.step = 0.0
        world.writing()
        return modified(name)

    monkeypatch.setattr(world.store, "modified", late)
    assert lease.renew() is None
    world.publish(lease)
    assert world.stored_again == world.own


def test_after_the_clock_of_the_store_was_set_back_what_the_session_stores_is_spared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    lease = Lease(world.writing(), "backup")
    world.step -= 7200
    world.passed += 60
    world.writing()
    lease.renew()
    lease.renew()
    world.builder = world._packs()
    world.own = {ref.name for ref in world.written.values()}
    world.passed += 60
    world.step += 7200
    world.writing()
    lease.renew()
    assert world.collect(300).condemned == 0
    world.publish(lease)
