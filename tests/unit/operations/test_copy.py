"""Restore points are copied whole, each once, and only what is missing of them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import pytest
import soaks
from histories import KEYS, History
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import UUID, point, record
from stores_for_tests import MemoryStore

from _cbt.control import Control, Progress
from _cbt.errors import CbtError, DamagedObject, Interrupted, ObjectMissing, Refused
from _cbt.grid import BLOCK_SIZE
from _cbt.operations import copy as copying
from _cbt.operations.copy import CopyRequest, CopyResult, copy, nearest
from _cbt.operations.point.new_point import StoringOptions
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.crypto.keys import Keys
from _cbt.repository.format import names
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL, LATEST, PointSelection
from _cbt.repository.sharing.collector import Collector
from _cbt.repository.sharing.leases import Lease

OPTIONS = StoringOptions(compression="none", workers=1)


class Destination:
    """An empty repository to copy into; ``read`` is that of a history."""

    def __init__(self, keys: Keys) -> None:
        self.history = History(keys)
        self.history.repository = self.repository = Repository(self.history.store, "11" * 16, keys)
        self.history.fresh = lambda: self.repository  # type: ignore[method-assign]

    def take(self, source: History, wanted: PointSelection = ALL) -> CopyResult:
        """Copy from a history."""
        return copy(source.fresh(), self.repository, CopyRequest(wanted=wanted, options=OPTIONS))

    def stored(self) -> int:
        """Bytes in packs."""
        return sum(len(data) for name, data in self.history.store.objects.items() if name.startswith("packs/"))


@pytest.fixture(params=[("plain", "plain"), ("plain", "encrypted"), ("encrypted", "plain")], ids="-to-".join)
def sides(request: pytest.FixtureRequest) -> tuple[History, Destination]:
    """A repository with three points, and one to copy them to."""
    source = History(KEYS[request.param[0]])
    source.disk.write(40, 999)
    for turn in range(3):
        for block in range(turn, 10 + turn):
            source.disk.write(block, 20 * turn + block + 1)
        source.disk.write(turn, 0)
        source.backup()
    return source, Destination(KEYS[request.param[1]])


def test_every_point_arrives_and_restores_to_the_same_bytes(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    result = dest.take(source)
    assert [each.point.id for each in result.copied] == sorted(source.truth)
    assert {name: dest.history.read(name) for name in source.truth} == source.truth
    there, here = source.fresh().points_of().points, dest.repository.points_of().points
    assert {each.repository for each in here} == {dest.repository.id}
    plain = [dataclasses.replace(each, disks=(), repository="") for each in here]
    assert plain == [dataclasses.replace(each, disks=(), repository="") for each in there]


def test_a_copy_records_how_it_was_stored(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    copy(source.fresh(), dest.repository, CopyRequest(options=dataclasses.replace(OPTIONS, dedup="domain")))
    assert {each.dedup for each in source.fresh().points_of().points} == {"repository"}
    assert {each.dedup for each in dest.repository.points_of().points} == {"domain"}


@pytest.mark.parametrize("check_only", [False, True])
@pytest.mark.parametrize(
    ("options", "said"),
    [({"compression_level": 99}, "none has no level 99"), ({"rate_limit": 0}, "Omit it to read without a limit")],
)
def test_unusable_storage_options_are_refused_before_anything_is_done(
    sides: tuple[History, Destination], options: dict[str, int], said: str, check_only: bool
) -> None:
    source, dest = sides
    before = dict(dest.history.store.objects)
    with pytest.raises(CbtError, match=said):
        copy(
            source.fresh(),
            dest.repository,
            CopyRequest(options=dataclasses.replace(OPTIONS, **options)),
            check_only=check_only,
        )  # type: ignore[arg-type]
    assert dest.history.store.objects == before


def test_copying_again_copies_nothing(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    dest.take(source)
    before = dict(dest.history.store.objects)
    result = dest.take(source)
    assert (result.copied, len(result.present)) == ((), 3)
    assert dest.history.store.objects == before


def test_a_point_whose_base_has_too_many_runs_is_read_as_a_whole(
    sides: tuple[History, Destination], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = sides
    monkeypatch.setattr(copying, "_COMPARED", 0)
    first, second, _third = (each.statistics for each in dest.take(source).copied)
    assert first is not None and second is not None
    assert second.read_bytes > 9 * BLOCK_SIZE, "what did not change is read again"
    assert {name: dest.history.read(name) for name in source.truth} == source.truth


def test_only_what_differs_from_the_point_before_is_read(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    first, second, _third = (each.statistics for each in dest.take(source).copied)
    assert first is not None
    assert second is not None
    assert first.read_bytes == 10 * BLOCK_SIZE
    assert second.read_bytes == 9 * BLOCK_SIZE  # ten were written, one of them with zeroes
    source.disk.write(30, 77)
    source.backup()
    (fourth,) = dest.take(source).copied
    assert fourth.statistics is not None
    assert (fourth.statistics.read_bytes, fourth.statistics.new_bytes) == (BLOCK_SIZE, BLOCK_SIZE)


def test_a_point_older_than_all_that_were_copied_shares_with_the_next_one(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    names = sorted(source.truth)
    dest.take(source, wanted=PointSelection.parse(names[1:]))
    (oldest,) = dest.take(source).copied
    assert oldest.point.id == names[0]
    assert dest.history.read(names[0]) == source.truth[names[0]]
    assert oldest.statistics is not None
    assert oldest.statistics.read_bytes == 9 * BLOCK_SIZE  # all but the block that never changed


def test_check_mode_reports_the_pending_copies_and_changes_nothing(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    before = dict(dest.history.store.objects)
    plan = copy(source.fresh(), dest.repository, CopyRequest(wanted=LATEST, options=OPTIONS), check_only=True)
    assert [each.point.id for each in plan.copied] == [max(source.truth)]
    assert dest.history.store.objects == before
    assert [each.point.id for each in dest.take(source, wanted=LATEST).copied] == [max(source.truth)]


def test_a_point_that_is_damaged_is_named_and_the_others_are_copied(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    names = sorted(source.truth)
    source.flip(names[0], 0) if source.truth[names[0]][:1] != b"\0" else source.flip(names[0], 1)
    result = dest.take(source)
    assert list(result.failed) == [names[0]]
    assert "pack" in result.failed[names[0]]
    assert [each.point.id for each in result.copied] == [name for name in names if name not in result.failed]
    for each in result.copied:
        assert dest.history.read(each.point.id) == source.truth[each.point.id]


def _beside(source: History, act: Callable[[], object]) -> None:
    """Have something else done once, right before the first part of a pack is read."""
    acts, plain = [act], source.store.get_range

    def get_range(name: str, offset: int, length: int) -> bytes:
        if acts:
            acts.pop()()
        return plain(name, offset, length)

    source.store.get_range = get_range  # type: ignore[method-assign]


def test_points_healed_during_a_copy_are_copied_in_their_healed_state(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    names = sorted(source.truth)
    source.flip(names[0], 40)
    verify(source.fresh(), VerifyRequest(wanted=ALL, workers=1))
    _beside(source, source.backup)
    result = dest.take(source)
    assert result.failed == {}
    assert {name: dest.history.read(name) for name in names} == {name: source.truth[name] for name in names}


def test_a_concurrently_removed_point_is_skipped_without_failure(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    first, *others = sorted(source.truth)

    def remove() -> None:
        pack = source.block_place(first, 0 if source.truth[first][:1] != b"\0" else 1)[0]
        del source.store.objects[names.manifest(UUID, first)], source.store.objects[pack]
        source.truth.pop(first)

    _beside(source, remove)
    result = dest.take(source)
    assert first not in result.failed
    assert first not in [each.point.id for each in result.copied]
    assert {*result.failed, *(each.point.id for each in result.copied)} == set(others)


def test_a_vanished_source_does_not_pass_for_an_empty_source(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    _beside(source, source.store.objects.clear)
    with pytest.raises(ObjectMissing):
        dest.take(source)


@pytest.mark.parametrize("harm", ["missing", "truncated", "recorded"])
def test_damage_of_the_destination_is_not_carried_on(harm: str, sides: tuple[History, Destination]) -> None:
    source, dest = sides
    dest.take(source, wanted=PointSelection.parse(sorted(source.truth)[:1]))
    packs = [name for name in dest.history.store.objects if name.startswith("packs/")]
    for name in packs:
        whole = dest.history.store.objects.pop(name)
        if harm != "missing":
            dest.history.store.objects[name] = (
                whole[:-1] if harm == "truncated" else whole[:50] + bytes(len(whole) - 50)
            )
    if harm == "recorded":
        verify(dest.repository, VerifyRequest(wanted=ALL, workers=1))
    dest.history.repository = dest.repository = Repository(dest.history.store, "11" * 16, dest.repository.keys)
    try:
        dest.take(source)
    except DamagedObject:
        pytest.fail("a missing pack of the destination is no reason to give up")
    newest = max(source.truth)
    try:
        assert dest.history.read(newest) == source.truth[newest]
    except DamagedObject as error:
        pytest.fail(str(error))


def test_damage_in_the_destination_is_healed_by_the_next_point(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    names = sorted(source.truth)
    dest.take(source, wanted=PointSelection.parse(names[:2]))
    dest.history.truth = source.truth
    dest.history.flip(names[0], 40)
    verify(dest.repository, VerifyRequest(wanted=ALL, workers=1))
    dest.history.repository = dest.repository = Repository(dest.history.store, "11" * 16, dest.repository.keys)
    assert dest.history.damaged() == names[:2]
    result = dest.take(source)
    assert result.warnings == ("1 damaged blocks were stored again, and 2 earlier restore points were healed by them.",)
    assert (dest.history.untrue(), dest.history.damaged()) == ([], [])


def test_a_repository_is_not_copied_into_itself(sides: tuple[History, Destination]) -> None:
    source, _dest = sides
    with pytest.raises(Refused, match="same repository"):
        copy(source.fresh(), source.fresh(), CopyRequest(options=OPTIONS))


class Failing(MemoryStore):
    """Fails at the n-th change and from then on."""

    left = -1

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("killed")
        return super().put(name, data, replace)


@pytest.mark.parametrize("at", range(1, 40, 3))
def test_killed_at_any_time_it_leaves_whole_points_and_goes_on(at: int) -> None:
    source, dest = History(), Destination(KEYS["plain"])
    for turn in range(3):
        source.disk.write(turn, turn + 1)
        source.backup()
    store = Failing()
    store.objects, store.left = dest.history.store.objects, at
    dest.repository.store = store
    try:
        dest.take(source)
    except RuntimeError:
        dest.repository.store = dest.history.store
    for each in dest.repository.points_of().points:
        assert dest.history.read(each.id) == source.truth[each.id]
    dest.take(source)
    assert {each.id for each in dest.repository.points_of().points} == set(source.truth)
    assert {name: dest.history.read(name) for name in source.truth} == source.truth


def ended(source: History, dest: Destination, options: StoringOptions = OPTIONS) -> None:
    """A copy that is ended when the second of its points was read."""

    def end(_progress: Progress) -> None:
        if dest.repository.points_of().points:
            control.request("SIGTERM")

    control = Control(end)

    with pytest.raises(
        Interrupted,
        match=r"Ended by SIGTERM\. 1 of 3 restore points were copied, and these are complete\. Run it again for the others\.",
    ):
        copy(source.fresh(), dest.repository, CopyRequest(options=options), control)


def test_an_interrupted_copy_says_so_and_later_reuses_its_stored_data(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    for block in range(48):
        source.disk.write(block, 2000 + block)
    fourth = source.backup()
    first, *_between = (point.id for point in source.fresh().points_of().points)
    copy(source.fresh(), dest.repository, CopyRequest(wanted=PointSelection.parse([first]), options=OPTIONS))
    before = dest.stored()

    def interrupt(progress: Progress) -> None:
        if progress.done == progress.total:  # all blocks are read, and the point is not published
            control.request("SIGTERM")

    control = Control(interrupt)
    with pytest.raises(Interrupted):
        copy(
            source.fresh(),
            dest.repository,
            CopyRequest(
                wanted=PointSelection.parse([fourth.id]),
                options=OPTIONS,
            ),
            control,
        )
    assert [point.id for point in dest.repository.points_of().points] == [first]
    folder = f"points/{UUID}/{fourth.id}"
    assert not [name for name in dest.history.store.objects if name.startswith(folder)]
    stored = dest.stored()
    assert stored - before > 48 * BLOCK_SIZE - 512
    (copied,) = dest.take(source, wanted=PointSelection.parse([fourth.id])).copied
    assert dest.stored() == stored
    assert copied.statistics is not None
    assert copied.statistics.stored_bytes == 0
    assert dest.history.read(fourth.id) == source.truth[fourth.id]


def test_a_copy_interrupted_while_healing_says_that_all_points_are_copied(
    sides: tuple[History, Destination],
) -> None:
    source, dest = sides
    dest.take(source)
    first, *_others = sorted(source.truth)
    dest.history.flip(first, 40)
    assert [
        verdict.status
        for verdict in verify(dest.repository, VerifyRequest(wanted=PointSelection.parse([first]), workers=1))[0]
    ] == ["damaged"]
    source.disk.write(41, 4711)
    fourth = source.backup()
    control = Control()

    class Ending(MemoryStore):
        """A signal comes in the moment in which the manifest is published."""

        def put(self, name: str, data: bytes, replace: bool = True) -> bool:
            done = super().put(name, data, replace)
            if name == names.manifest(UUID, fourth.id):
                control.request("SIGTERM")
            return done

    dest.repository.store = ending = Ending()
    ending.objects = dest.history.store.objects
    result = copy(source.fresh(), dest.repository, CopyRequest(options=OPTIONS), control)
    assert [each.point.id for each in result.copied] == [fourth.id]
    (warning,) = result.warnings
    assert "were not healed: Ended by SIGTERM. 1 of 1 restore points were copied, and these are complete." in warning
    assert dest.history.read(fourth.id) == source.truth[fourth.id]


def test_an_interrupted_copy_without_deduplication_leaves_no_unreferenced_pack(
    sides: tuple[History, Destination],
) -> None:
    source, dest = sides
    ended(source, dest, dataclasses.replace(OPTIONS, dedup="none"))
    packs = {name for name in dest.history.store.objects if name.startswith("packs/")}
    (done,) = dest.repository.points_of().points
    assert dest.history.read(done.id) == source.truth[done.id]
    assert packs == {ref.name for ref in dest.repository.read_map(done, "vda").packs}
    assert len(dest.take(source).copied) == 2


def test_leftovers_of_an_interrupted_copy_are_collected(sides: tuple[History, Destination]) -> None:
    source, dest = sides
    ended(source, dest)
    (done,) = dest.repository.points_of().points
    needed = {ref.name for ref in dest.repository.read_map(done, "vda").packs}
    assert len({name for name in dest.history.store.objects if name.startswith("packs/")}) > len(needed)
    for _run in range(2):  # the first one announces
        dest.history.store.clock += 86400
        lease = Lease(dest.repository, "retention")
        Collector(dest.repository, dest.history.store.clock, 3600).collect(lease)
        lease.release()
    assert {name for name in dest.history.store.objects if name.startswith("packs/")} == needed
    assert len(dest.take(source).copied) == 2
    assert {name: dest.history.read(name) for name in source.truth} == source.truth


@settings(max_examples=soaks.examples(0.27))
@given(
    st.lists(st.sampled_from(["write", "write", "backup", "copy", "latest"]), max_size=20),
    st.randoms(use_true_random=False),
)
def test_copied_points_have_the_same_bytes_after_any_sequence_of_writes_and_copies(
    steps: list[str], chance: random.Random
) -> None:
    source, dest = History(), Destination(KEYS["plain"])
    source.disk.write(0, 1)
    source.backup()
    for step in [*steps, "copy"]:
        if step == "write":
            source.disk.write(chance.randrange(12), chance.randrange(6))
        elif step == "backup" and len(source.truth) < 28:
            source.backup()
        elif step in ("copy", "latest"):
            dest.take(source, wanted=ALL if step == "copy" else LATEST)
    assert {name: dest.history.read(name) for name in source.truth} == source.truth


def test_the_nearest_point_both_hold_is_taken_as_base() -> None:
    line = [point(number, (record(size=1 << 20 if number != 2 else 1 << 21),)) for number in range(1, 6)]
    disk = line[3].disks[0]
    assert nearest(line[3], disk, line, []) is None
    assert nearest(line[3], disk, line, [line[0], line[1]]) == (line[0], line[0])
    assert nearest(line[3], disk, line, [line[0], line[2], line[4]]) == (line[2], line[2])
    assert nearest(line[3], disk, line, [line[4]]) == (line[4], line[4])
    assert nearest(line[3], disk, line, [dataclasses.replace(line[2], uuid=UUID[::-1])]) is None
