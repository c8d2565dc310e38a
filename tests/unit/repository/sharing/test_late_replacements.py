# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest that is replaced or deleted hours after the request was made, as through a mount that hung: the point stays whole, or removed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
from samples import UUID, encoded, point, point_id, record
from stores_for_tests import MemoryStore

from _cbt.errors import Refused
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.repository.format import manifests, names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import PackRef
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import condemned, leases, removals, trash
from _cbt.repository.sharing.collector import Collector
from _cbt.repository.sharing.leases import ASTRAY, LAPSE, Lease
from _cbt.repository.sharing.publishing import publish
from _cbt.repository.sharing.relocation import Move, relocate
from _cbt.repository.sharing.wholeness import is_whole

CONTENTS = [bytes([value]) * BLOCK_SIZE for value in (1, 2, 3, 4)]
OTHER = "11111111-9a3c-4c0e-8a53-0d1b1f6f4a11"


class World:
    """A point of two disks in one pack, of which copies lie elsewhere: of half of it, and of all; and a point of another domain."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store.objects["repository.json"] = b""
        self._marks = itertools.count()
        self.point = self._point(UUID, self.pack(CONTENTS))
        self._point(OTHER, self.pack(CONTENTS))
        self.store.clock += 10
        self.half, self.all = self.pack(CONTENTS[:2]), self.pack(CONTENTS)

    def repository(self) -> Repository:
        """As another process opens it."""
        return Repository(self.store, "0" * 32)

    def pack(self, contents: list[bytes]) -> PackRef:
        """Store a pack of these blocks."""
        writer = self.repository().writer()
        writer.append([encoded(each) for each in contents])
        return next(iter(writer.finish().values()))

    def _point(self, uuid: str, pack: PackRef) -> RestorePoint:
        self.old = getattr(self, "old", pack)
        made = self.stored(uuid, pack)
        self.repository().publish(made)
        return made

    def stored(self, uuid: str, pack: PackRef) -> RestorePoint:
        """A point of the blocks of a pack, not published yet."""
        repository, disks = self.repository(), []
        for number, target in enumerate(("vda", "vdb")):
            builder = MapBuilder(2 * BLOCK_SIZE)
            builder.put(0, 2, pack.id, 2 * number)
            data = {names.map_file(target, f"{next(self._marks):08x}"): builder.finish({pack.id: pack}).encode()}
            files = repository.put_files(names.point_folder(uuid, point_id(1)), data)
            disks.append(dataclasses.replace(record(target, size=2 * BLOCK_SIZE), map=next(iter(files.values()))))
        return point(1, tuple(disks), uuid=uuid, repository="0" * 32)

    def move(self, count: int, pack: PackRef, uuid: str = UUID) -> bool:
        """Have the point, or that of another domain, name copies of so many blocks."""
        lease = Lease(self.repository(), "compaction")
        made = self.repository().point(uuid, self.point.id)
        try:
            old = self.repository().read_packs(made, made.disks[0])[0] if uuid != UUID else self.old
            return relocate(lease, made, {old.id: [Move(0, count, pack, 0)]})
        finally:
            lease.release()

    def remove(self) -> None:
        """Remove the point."""
        trash.remove(self.repository(), self.repository().point(UUID, self.point.id))

    def collect(self, grace: float) -> None:
        """Retention on three nights."""
        for _turn in range(3):
            self.store.clock += grace + LAPSE + ASTRAY + 200
            lease = Lease(self.repository(), "retention")
            Collector(self.repository(), lease.now(), grace).collect(lease, confirm_shrink=True)
            lease.release()

    def hang(self, name: str, request: str, meanwhile: Callable[[], None], before: bool = True) -> None:
        """Have others work and hours pass before, or after, the next request of a kind with this in its name is carried out."""
        plain = getattr(self.store, request)

        def late(each: str, *arguments: object, **options: object) -> object:
            if name not in each:
                return plain(each, *arguments, **options)
            setattr(self.store, request, plain)
            if before:
                meanwhile()
            done = plain(each, *arguments, **options)
            if not before:
                meanwhile()
            return done

        setattr(self.store, request, late)

    def check(self, exists: bool) -> None:
        """The point exists or does not, and all points hold what they must."""
        repository = self.repository()
        listing = repository.points_of()
        assert not listing.damaged
        assert (UUID in {each.uuid for each in listing.points}) == exists
        for each in listing.points:
            for number, target in enumerate(("vda", "vdb")):
                runs = repository.read_map(each, target).runs()
                blocks = [
                    bytes(block) for run in runs for block in repository.reader.blocks(run.pack, run.ordinal, run.count)
                ]  # type: ignore[arg-type]
                assert blocks == CONTENTS[2 * number : 2 * number + 2]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """One clock for all."""
    made = World()
    monkeypatch.setattr(leases, "boot_clock", lambda: made.store.clock)
    return made


@pytest.mark.parametrize("grace", [300.0, 86400.0])
def test_a_point_removed_before_the_manifest_appears_stays_removed(world: World, grace: float) -> None:
    def others() -> None:
        world.remove()
        world.collect(grace)

    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", others)
    assert not world.move(2, world.half)
    world.check(exists=False)
    world.collect(grace)
    world.check(exists=False)


def test_a_point_just_removed_before_the_manifest_appears_stays_in_the_trash(world: World) -> None:
    def others() -> None:
        world.remove()
        world.store.clock += LAPSE * 2

    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", others)
    assert not world.move(2, world.half)
    world.check(exists=False)
    retention(world.repository(), RetentionRequest(undelete=(world.point.id,), collect=False))
    world.check(exists=True)


@pytest.mark.parametrize("nights", [0, 1])
def test_a_point_removed_whose_entry_is_gone_before_the_manifest_appears_stays_removed(
    nights: int, world: World
) -> None:
    def others() -> None:
        world.remove()
        for _night in range(nights + 1):
            world.store.clock += 301
            retention(world.repository(), RetentionRequest(grace=300.0))  # which deletes nothing that the draft names
        assert not trash.removed(world.repository())

    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", others)
    assert not world.move(2, world.half)
    world.check(exists=False)
    assert not removals.vanished(world.repository(), world.point.key)


def test_a_point_that_was_removed_and_came_back_before_it_was_moved_stays(world: World) -> None:
    def hours() -> None:
        world.store.clock += LAPSE * 2

    removals.record(world.repository(), [world.point.key])
    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", hours)
    assert world.move(2, world.half)
    world.check(exists=True)


def test_a_point_removed_and_what_its_late_manifest_names_gone_leaves_nothing_that_blocks_retention(
    world: World,
) -> None:
    def others() -> None:
        world.collect(300.0)  # what only the draft named
        world.remove()

    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", others)
    assert not world.move(2, world.half)
    world.check(exists=False)
    retention(world.repository(), RetentionRequest())
    retention(world.repository(), RetentionRequest(undelete=(world.point.id,), collect=False))
    world.check(exists=True)


@pytest.mark.parametrize("removed", [False, True])
def test_a_late_manifest_that_another_run_replaced_at_once_stays_replaced(removed: bool, world: World) -> None:
    other = dataclasses.replace(world.point, tags={"by": "another"})
    put = world.store.put

    def late(name: str, data: bytes, replace: bool = True) -> bool:
        if not name.endswith(f"{world.point.id}/manifest.json") or name.startswith("drafts/"):
            return put(name, data, replace)
        world.store.put = put  # type: ignore[method-assign]
        world.collect(300.0)  # what only the draft named
        if removed:
            world.remove()
        put(name, data, replace)
        return world.repository().publish(other)  # as one who brings it back

    world.store.put = late  # type: ignore[method-assign]
    assert not world.move(2, world.half)
    world.check(exists=True)
    assert world.repository().point(UUID, world.point.id) == other


def test_a_point_removed_while_its_objects_are_restored_stays_removed(world: World) -> None:
    put, at = world.store.put, []

    def late(name: str, data: bytes, replace: bool = True) -> bool:
        if not name.startswith("drafts/") and name.endswith(f"{UUID}/{world.point.id}/manifest.json"):
            at.append(name)
            if len(at) == 1:
                world.collect(300.0)  # what only the draft named
            else:
                world.store.put = put  # type: ignore[method-assign]
                world.remove()
        return put(name, data, replace)

    world.store.put = late  # type: ignore[method-assign]
    assert not world.move(2, world.half)
    assert len(at) == 2
    world.check(exists=False)


@pytest.mark.parametrize("grace", [300.0, 86400.0])
@pytest.mark.parametrize("gone", ["pack", "map"])
def test_a_late_session_gives_a_point_back_what_it_named_however_long_that_takes(
    world: World, gone: str, grace: float
) -> None:
    """A collector that was held up has deleted one of the objects that the late manifest names. Another point has an equal map, and is met first."""
    put, at, manifest = world.store.put, [], names.manifest(UUID, world.point.id)
    world.store.objects[manifest] = world.store.objects.pop(manifest)
    assert world.move(2, world.half, OTHER)

    def late(name: str, data: bytes, replace: bool = True) -> bool:
        if name == manifest:
            at.append(name)
            world.store.clock += LAPSE
            if len(at) == 1:
                after = manifests.decode(data, name)
                world.store.delete(world.half.name if gone == "pack" else after.object_name(after.disks[0].map))
            else:
                world.collect(grace)
        return put(name, data, replace)

    world.store.put = late  # type: ignore[method-assign]
    assert not world.move(2, world.half)
    assert len(at) == 2
    repository = world.repository()
    assert repository.point(UUID, world.point.id) == world.point
    assert is_whole(repository, world.point)


def test_a_late_session_checks_its_repair_again_each_time_it_appeared_late(world: World) -> None:
    """Another session moves the point while the fourth put hangs, and a collector deletes the objects of that manifest."""
    put, at, manifest = world.store.put, [], names.manifest(UUID, world.point.id)

    def late(name: str, data: bytes, replace: bool = True) -> bool:
        if name == manifest:
            at.append(name)
            if len(at) == 1:
                world.collect(300.0)  # what only the draft named
            elif len(at) < 4:
                condemned.condemn(world.repository(), world.point.object_name(world.point.disks[0].map))
            elif len(at) == 4:
                world.store.put = put  # type: ignore[method-assign]
                Collector(world.repository(), world.store.clock, 300.0).collect(Lease(world.repository(), "retention"))
                assert world.move(4, world.pack(CONTENTS))
                world.collect(300.0)
        return put(name, data, replace)

    world.store.put = late  # type: ignore[method-assign]
    assert not world.move(2, world.half)
    assert len(at) == 4
    world.check(exists=True)


def test_a_point_whose_late_manifest_names_a_deleted_object_is_not_moved_by_another_session(world: World) -> None:
    """A renewed lease spares the new map, but not the pack with the copies, which is older."""

    def days() -> None:
        world.store.clock += 86400
        world.store.delete(world.half.name)
        world.hang(f"trash/{UUID}/{world.point.id}", "list", lambda: moved.append(world.move(4, world.all)))

    moved: list[bool] = []
    world.hang(f"points/{UUID}/{world.point.id}/manifest.json", "put", days)
    assert not world.move(2, world.half)
    world.check(exists=True)
    assert moved == [False]


def test_a_copy_delayed_while_it_looks_for_another_does_not_publish_deleted_objects(world: World) -> None:
    put, manifest = world.store.put, names.manifest(UUID, world.point.id)
    world.remove()
    made = world.stored(UUID, world.pack(CONTENTS))

    def whole(name: str, data: bytes, replace: bool = True) -> bool:
        assert name != manifest or is_whole(world.repository(), manifests.decode(data, name))
        return put(name, data, replace)

    world.store.put = whole  # type: ignore[method-assign]
    world.hang(manifest, "get", lambda: world.collect(300.0))
    lease = Lease(world.repository(), "copy")
    publish(lease, made, lambda _gone: world.stored(UUID, world.pack(CONTENTS)), yields=True)
    assert not is_whole(world.repository(), made)
    world.check(exists=True)


def test_a_point_brought_back_too_late_does_not_replace_its_copy(world: World) -> None:
    """A copy from another repository made the point exist again while the request hung."""
    manifest = names.manifest(UUID, world.point.id)
    world.remove()

    def others() -> None:
        world.collect(86400.0)
        made = dataclasses.replace(world.stored(UUID, world.pack(CONTENTS)), tags={"by": "copy"})
        assert publish(Lease(world.repository(), "copy"), made, lambda _gone: made, yields=True) == made

    world.hang(manifest, "put", others)
    with pytest.raises(Refused, match="cannot be brought back"):
        retention(world.repository(), RetentionRequest(undelete=(world.point.id,), collect=False))
    world.check(exists=True)
    assert world.repository().point(UUID, world.point.id).tags == {"by": "copy"}


def test_a_point_with_no_intact_data_left_is_recorded_as_removed(world: World) -> None:
    def others() -> None:
        world.collect(300.0)
        world.store.delete(world.old.name)

    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", others)
    assert not world.move(2, world.half)
    assert UUID not in {each.uuid for each in world.repository().points_of().points}
    assert not removals.vanished(world.repository(), world.point.key)


@pytest.mark.parametrize("grace", [300.0, 86400.0])
@pytest.mark.parametrize("count", [2, 4])
def test_a_point_moved_by_another_before_the_manifest_appears_is_whole(world: World, grace: float, count: int) -> None:
    def others() -> None:
        assert world.move(4, world.all)
        world.collect(grace)
        assert world.old.name not in world.store.objects

    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", others)
    world.move(count, world.half if count == 2 else world.all)
    world.check(exists=True)
    world.collect(grace)
    world.check(exists=True)


@pytest.mark.parametrize("grace", [300.0, 86400.0])
def test_a_point_whose_new_map_is_gone_when_the_manifest_appears_is_what_it_was(world: World, grace: float) -> None:
    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", lambda: world.collect(grace))
    assert not world.move(2, world.half)
    world.check(exists=True)
    world.collect(grace)
    world.check(exists=True)
    assert world.repository().point(UUID, world.point.id) == world.point


def test_a_manifest_that_appears_late_and_names_nothing_that_is_lost_stays(world: World) -> None:
    def hours() -> None:
        world.store.clock += LAPSE * 2

    world.hang(f"{UUID}/{world.point.id}/manifest.json", "put", hours)
    assert world.move(2, world.half)
    world.check(exists=True)


@pytest.mark.parametrize(("request_", "name", "before"), [("put", "trash/", False), ("delete", "manifest.json", True)])
def test_a_removal_that_goes_on_late_leaves_an_entry_in_the_trash(
    world: World, request_: str, name: str, before: bool
) -> None:
    def others() -> None:
        world.store.clock += LAPSE + 1
        world.remove()
        world.store.clock += LAPSE + ASTRAY + 1
        retention(world.repository(), RetentionRequest(undelete=(world.point.id,), collect=False))
        world.check(exists=True)

    world.hang(name, request_, others, before)
    delete = world.store.delete

    def checked(name: str) -> None:
        assert not name.endswith("manifest.json") or trash.contains(world.repository(), world.point), (
            "it could not be brought back for a moment"
        )
        delete(name)

    if request_ == "put":
        world.store.delete = checked  # type: ignore[method-assign]
    world.remove()
    world.check(exists=False)
    assert [each.point.id for each in trash.removed(world.repository())]
    retention(world.repository(), RetentionRequest(undelete=(world.point.id,), collect=False))
    world.check(exists=True)


@pytest.mark.parametrize(
    ("request_", "name", "before"),
    [("put", "trash/", True), ("put", "trash/", False), ("delete", "manifest.json", True)],
)
def test_a_removal_that_goes_on_after_all_was_deleted_leaves_nothing_that_blocks_retention(
    world: World, request_: str, name: str, before: bool
) -> None:
    def others() -> None:
        world.remove()
        world.collect(86400.0)
        assert world.old.name not in world.store.objects

    world.hang(name, request_, others, before)
    world.remove()
    world.check(exists=False)
    assert not trash.removed(world.repository())
    world.collect(86400.0)


@pytest.mark.parametrize("passed", [0.0, LAPSE / 2 - 1])
def test_an_entry_of_a_host_whose_clock_is_hours_behind_stays_when_the_point_is_brought_back(
    passed: float, world: World
) -> None:
    def others() -> None:
        world.remove()
        world.store.clock += passed
        for name in world.store.list("trash"):
            world.store.times[name] -= ASTRAY
        retention(world.repository(), RetentionRequest(undelete=(world.point.id,), collect=False))
        world.check(exists=True)

    world.hang("manifest.json", "delete", others)
    world.remove()
    world.check(exists=False)
    assert trash.removed(world.repository())
