"""Verification records damage for healing, only what is damaged for certain, and forgets what is sound again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from engine_history import EngineHistory
from histories import BLOCKS, History
from samples import OTHER_UUID, UUID, point_id
from stores_for_tests import MemoryStore

from _cbt.control import Control, Progress
from _cbt.errors import Interrupted, ObjectMissing, RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.info import healths
from _cbt.operations.verify.verdicts import PointVerdict
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.format import envelope, names
from _cbt.repository.records import damage, verified
from _cbt.repository.records.damage import PackDamage
from _cbt.repository.selecting import PointSelection


def found(history: History, **asked: Any) -> list[PointVerdict]:
    request = {key: asked.pop(key) for key in ("level", "sample") if key in asked}
    wanted = PointSelection.parse(asked.pop("wanted", ["all"]))
    return verify(history.fresh(), VerifyRequest(wanted=wanted, workers=1, **request), **asked)[0]


def recorded(history: History) -> dict[bytes, PackDamage]:
    return damage.read_all(history.fresh())


def told(history: History) -> list[tuple[str | None, bool]]:
    repository = history.fresh()
    return [
        (each.verified and each.verified["status"], each.damaged)
        for each in healths(repository, repository.points_of().points)
    ]


@pytest.fixture
def history() -> History:
    """Two points; block 5 is in both."""
    made = History()
    for block in range(BLOCKS):
        made.disk.write(block, block + 1)
    made.backup()
    made.disk.write(7, 1007)
    made.backup()
    return made


def test_a_manifest_that_cannot_be_read_is_damage_unless_points_are_asked_for_by_id(history: History) -> None:
    name = names.manifest(UUID, point_id(1))
    history.store.objects[name] = history.store.objects[name][:-1]
    for wanted, number in ((["all"], 2), (["latest"], 2), ([point_id(2)], 1), ([], 0)):
        assert len(found(history, wanted=wanted)) == number, wanted


def test_a_flipped_bit_is_recorded_and_shown_for_every_point_that_shares_it(history: History) -> None:
    assert told(history) == [(None, False), (None, False)]
    pack, _start, _length = history.block_place(point_id(1), 5)
    history.flip(point_id(1), 5)
    assert [verdict.status for verdict in found(history, wanted=["latest"])] == ["damaged"]
    (entry,) = recorded(history).items()
    assert entry[0].hex() in pack
    assert entry[1].blocks == {5}
    assert "stored" in entry[1].cause or "SHA-256" in entry[1].cause
    assert told(history) == [(None, True), ("damaged", True)]


def test_damage_found_sound_again_is_forgotten(history: History) -> None:
    whole = history.flip(point_id(1), 5)
    found(history)
    history.store.objects[history.block_place(point_id(1), 5)[0]] = whole
    found(history)
    assert recorded(history) == {}
    assert told(history) == [("ok", False), ("ok", False)]


@pytest.mark.parametrize("level", ["structure", "data"])
def test_a_missing_pack_is_recorded_whole_and_forgotten_once_it_is_back(level: str, history: History) -> None:
    pack = history.block_place(point_id(1), 5)[0]
    whole = history.store.objects.pop(pack)
    assert [verdict.status for verdict in found(history, level=level)] == ["incomplete", "incomplete"]
    assert [each.blocks for each in recorded(history).values()] == [None]
    history.store.objects[pack] = whole
    assert [verdict.status for verdict in found(history, level=level)] == ["ok", "ok"]
    assert recorded(history) == {}


def test_a_damaged_directory_is_recorded_whole(history: History) -> None:
    pack = history.block_place(point_id(1), 5)[0]
    history.store.objects[pack] = history.store.objects[pack][:-70] + b"?" + history.store.objects[pack][-69:]
    found(history)
    assert [each.blocks for each in recorded(history).values()] == [None]


def test_what_was_recorded_of_blocks_not_read_stays(history: History) -> None:
    history.flip(point_id(1), 7)  # of the first point alone
    history.flip(point_id(1), 5)
    found(history)
    assert [each.blocks for each in recorded(history).values()] == [{5, 7}]
    found(history, wanted=["latest"])
    assert [each.blocks for each in recorded(history).values()] == [{5, 7}]


class Beside(MemoryStore):
    """Does something else once, right before the first reading of a part of a pack."""

    def __init__(self, like: MemoryStore, act: Callable[[], object]) -> None:
        super().__init__()
        self.objects, self.act = like.objects, [act]

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if self.act:
            self.act.pop()()
        return super().get_range(name, offset, length)


@pytest.mark.parametrize("seen", [False, True])
def test_the_record_of_a_concurrent_verification_is_kept(seen: bool, history: History) -> None:
    whole = history.flip(point_id(1), 5)
    pack = history.block_place(point_id(1), 5)[0]
    plain = history.store
    if seen:
        found(history)

    def other() -> None:
        history.flip(point_id(1), 7)  # of the first point alone
        history.store = plain
        found(history)
        if seen:  # and this one sees that the other block is sound again
            history.store.objects[pack] = whole
            history.flip(point_id(1), 7)

    history.store = Beside(plain, other)
    found(history, wanted=["latest"])
    assert [each.blocks for each in recorded(history).values()] == [{7} if seen else {5, 7}]


@pytest.mark.parametrize("gone", [False, True])
def test_a_verification_that_is_ended_keeps_what_it_found(gone: bool, history: History) -> None:
    history.flip(point_id(1), 5)

    def end(_progress: Progress) -> None:
        control.request("SIGTERM")
        if gone:
            history.store.objects.clear()

    control = Control(end)

    with pytest.raises(Interrupted):
        found(history, control=control)
    assert [each.blocks for each in recorded(history).values()] == ([] if gone else [{5}])
    assert not [name for name in history.store.objects if name.startswith("verified/")]


def test_in_check_mode_nothing_is_recorded(history: History) -> None:
    history.flip(point_id(1), 5)
    before = dict(history.store.objects)
    assert [verdict.status for verdict in found(history, record=False)] == ["damaged", "damaged"]
    assert history.store.objects == before


def test_a_read_only_repository_can_still_be_verified(history: History) -> None:
    history.flip(point_id(1), 5)
    history.store.full = True
    warnings: list[str] = []
    assert [verdict.status for verdict in found(history, warn=warnings.append)] == ["damaged", "damaged"]
    assert len(warnings) == 1 and "No space left" in warnings[0]


class Flaky(MemoryStore):
    """Gives other bytes, or an error, at the n-th reading of a part of a pack, and only then."""

    def __init__(self, like: MemoryStore, at: int, fault: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self.objects, self.readings, self.at, self.fault = like.objects, 0, at, fault

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self.readings += 1
        data = super().get_range(name, offset, length)
        return self.fault(data) if self.readings == self.at else data


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def absent(_data: bytes) -> bytes:
    raise ObjectMissing("Cannot read: it does not exist.")


class FlakyObjects(Flaky):
    """The same at the n-th reading of an object of a restore point, its manifest included."""

    def get(self, name: str, most: int | None = None) -> bytes:
        if not name.startswith("points/"):
            return super().get(name, most)
        self.readings += 1
        return self.fault(super().get(name)) if self.readings == self.at else super().get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self.objects[name][offset : offset + length]


@pytest.mark.parametrize("fault", [flipped, absent], ids=["flipped", "missing"])
def test_a_manifest_map_or_file_that_fails_to_read_once_is_not_damaged(fault: Callable[[bytes], bytes]) -> None:
    history = EngineHistory()
    history.disk.write(5, 6)
    history.backup()
    history.store = counting = FlakyObjects(history.store, -1, fault)
    found(history)
    assert counting.readings == 4, "its manifest, two files and a map"
    for at in range(2 if fault is absent else 1, 5):  # a manifest that is missing is a point that was removed
        history.store = FlakyObjects(counting, at, fault)
        assert [verdict.status for verdict in found(history)] == ["ok"], at
        assert told(history) == [("ok", False)]


def readings(history: History, level: str) -> int:
    history.store = counting = Flaky(history.store, -1, flipped)
    found(history, level=level)
    return counting.readings


@pytest.mark.parametrize(
    "fault", [flipped, lambda data: data[: len(data) // 2], lambda _data: b""], ids=["flipped", "short", "empty"]
)
@pytest.mark.parametrize("level", ["structure", "data"])
def test_a_single_failed_read_is_not_damage(level: str, fault: Callable[[bytes], bytes], history: History) -> None:
    for at in range(1, readings(history, level) + 1):
        history.store = Flaky(history.store, at, fault)
        assert [verdict.status for verdict in found(history, level=level)] == ["ok", "ok"], at
        assert recorded(history) == {}


class Unsteady(MemoryStore):
    """Gives bytes of which others are wrong at each of two readings that follow one another: a whole block, or all after the first."""

    def __init__(self, like: MemoryStore, wrong: dict[int, Callable[[bytes], bytes]]) -> None:
        super().__init__()
        self.objects, self.readings, self.wrong = like.objects, 0, wrong

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        data = super().get_range(name, offset, length)
        if length != 16 * BLOCK_SIZE:
            return data
        self.readings += 1
        return self.wrong.get(self.readings, bytes)(data)


def last_flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_readings_that_fail_at_different_places_are_no_damage(history: History) -> None:
    history.store = Unsteady(history.store, {1: flipped, 2: last_flipped})
    assert [verdict.status for verdict in found(history)] == ["ok", "ok"]
    assert recorded(history) == {}


@pytest.mark.parametrize("fault", [lambda data: flipped(last_flipped(data)), absent], ids=["flipped", "missing"])
@pytest.mark.parametrize("at", [1, 2])
def test_beside_a_reading_that_fails_at_more_places_only_what_both_found_is_damage(
    at: int, fault: Callable[[bytes], bytes], history: History
) -> None:
    history.flip(point_id(1), 5)
    history.store = Unsteady(history.store, {at: fault})
    assert [verdict.status for verdict in found(history)] == ["damaged", "damaged"]
    assert [each.blocks for each in recorded(history).values()] == [{5}]


@pytest.mark.parametrize("level", ["structure", "data"])
def test_a_store_error_is_not_damage(level: str, history: History) -> None:
    def fail(_data: bytes) -> bytes:
        raise RepositoryError("Cannot read: Connection timed out.")

    for at in range(1, readings(history, level) + 1):
        history.store = Flaky(history.store, at, fail)
        with pytest.raises(RepositoryError, match="timed out"):
            found(history, level=level)
        assert recorded(history) == {}


class BadSector(MemoryStore):
    """Cannot read one block, ever."""

    def __init__(self, like: MemoryStore, place: tuple[str, int, int]) -> None:
        super().__init__()
        self.objects, self.place = like.objects, place

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if name == self.place[0] and offset <= self.place[1] < offset + length:
            raise RepositoryError(f"Cannot read {name}: Input/output error.")
        return super().get_range(name, offset, length)


def test_beside_a_place_that_cannot_be_read_the_others_are_verified_and_the_turn_comes_again(history: History) -> None:
    bad = history.block_place(point_id(1), 7)  # of the first point alone
    history.flip(point_id(2), 7)
    history.flip(point_id(2), 5)
    history.store = BadSector(history.store, bad)
    turns = []
    for _run in range(4):
        with contextlib.suppress(RepositoryError):
            found(history, sample=50)
        turns.append(verified.next_slice(history.fresh(), UUID, "all", 2))
    assert len(set(turns)) == 1, "whether the first run meets it or the second, it is met until it can be read"
    with pytest.raises(RepositoryError, match="Input/output"):
        found(history)
    assert sorted(block for each in recorded(history).values() for block in each.blocks or ()) == [0, 5]
    assert [damaged for _status, damaged in told(history)] == [True, True]


def test_a_vanished_repository_is_not_reported_as_damage(history: History) -> None:
    def vanish(data: bytes) -> bytes:
        history.store.objects.clear()
        return data

    history.store = Flaky(history.store, 3, vanish)
    with pytest.raises(RepositoryError, match="does not exist"):
        found(history)
    assert history.store.objects == {}


def test_a_point_removed_while_it_is_verified_is_left_out(history: History) -> None:
    def remove(data: bytes) -> bytes:
        for name in list(history.store.objects):
            if name == names.manifest(UUID, point_id(1)) or name.startswith("packs/"):
                del history.store.objects[name]
        return data

    history.store = Flaky(history.store, 3, remove)
    assert [verdict.name for verdict in found(history)] == [point_id(2)]


class Noting(MemoryStore):
    """Notes which blocks are asked for."""

    def __init__(self, like: MemoryStore) -> None:
        super().__init__()
        self.objects, self.read = like.objects, set[str]()

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if length >= BLOCK_SIZE:
            self.read.add(f"{name} from {offset}")
        return super().get_range(name, offset, length)


def test_every_block_is_read_once_in_as_many_runs_as_a_sample_needs(history: History) -> None:
    for sample, runs in ((50, 2), (34, 3), (15, 7), (1, 100)):
        total, parts = 0, []
        for _run in range(runs):
            parts.append(sum(verdict.checked_bytes for verdict in found(history, sample=sample)))
            total += parts[-1]
        assert total == (BLOCKS + 1) * BLOCK_SIZE, sample  # both points together name one block more than a disk has
        assert max(parts) < total


def test_samples_of_different_sizes_in_turn_each_cover_everything(history: History) -> None:
    blocks = {50: set[str](), 20: set[str]()}
    for run in range(10):
        sample = (50, 20)[run % 2]
        history.store = noting = Noting(history.store)
        found(history, sample=sample)
        blocks[sample] |= noting.read
    assert blocks[50] == blocks[20]
    assert len(blocks[50]) == 4, "the pieces of 16 blocks that a full reading asks for"


@pytest.mark.parametrize(("sample", "percent"), [(100, 100), (99, 50), (50, 50), (34, 33), (15, 14), (1, 1)])
def test_a_verification_records_the_percentage_read(sample: int, percent: int, history: History) -> None:
    found(history, sample=sample)
    last = verified.last(history.fresh(), history.fresh().point(UUID, point_id(1)))
    assert last is not None
    assert last.percent == percent


@pytest.mark.parametrize("block", [0, 7, 20, BLOCKS - 1])
def test_a_sample_finds_every_damage_within_its_runs_and_reads_it_ever_after(block: int, history: History) -> None:
    history.flip(point_id(2), block)
    seen = ["damaged" in [verdict.status for verdict in found(history, sample=30)] for _run in range(8)]
    first = seen.index(True)
    assert first < 4
    assert all(seen[first:])


def test_domains_and_selections_have_their_own_turns(history: History) -> None:
    def turns() -> list[int]:
        return [
            verified.next_slice(history.fresh(), uuid, selection, 4)
            for uuid in (UUID, OTHER_UUID)
            for selection in ("all", "latest")
        ]

    found(history, sample=25)
    assert turns() == [1, 0, 0, 0]
    found(history, sample=25, wanted=["latest"])
    assert turns() == [1, 1, 0, 0]


def test_a_lost_turn_starts_over_and_a_damaged_record_counts_as_missing(history: History) -> None:
    found(history, sample=50)
    for name in list(history.store.objects):
        if name.startswith("verified/"):
            history.store.objects[name] = b"?"
    assert told(history) == [(None, False), (None, False)]
    assert verified.next_slice(history.fresh(), UUID, "all", 2) == 0


def test_what_was_verified_of_points_that_are_gone_is_forgotten(history: History) -> None:
    found(history)
    del history.store.objects[names.manifest(UUID, point_id(1))]
    found(history)
    assert sorted(name for name in history.store.objects if name.startswith("verified/")) == [
        f"verified/{UUID}/{point_id(2)}"
    ]


def test_a_damaged_damage_record_counts_for_the_whole_pack(history: History) -> None:
    name = f"damaged/{history.block_place(point_id(1), 5)[0].rsplit('/', 1)[1]}"
    history.store.objects[name] = b"?"
    assert [each.blocks for each in recorded(history).values()] == [None]
    found(history)
    assert recorded(history) == {}


@pytest.mark.parametrize("blocks", [5, True, "5", {}, ["a"], [[5]], [None, 5], [1.5]])
def test_a_malformed_damage_record_counts_for_the_whole_pack(blocks: Any, history: History) -> None:
    name = f"damaged/{history.block_place(point_id(1), 5)[0].rsplit('/', 1)[1]}"
    history.store.objects[name] = envelope.encode("damage", 1, {"blocks": blocks, "cause": "?"})
    assert told(history) == [(None, True), (None, True)]
    history.backup()
    assert (history.untrue(), history.damaged()) == ([], [])
    found(history)
    assert recorded(history) == {}


@pytest.mark.parametrize("number", [-1, 1 << 70])
def test_a_damage_record_of_nonexistent_blocks_is_harmless(number: int, history: History) -> None:
    name = f"damaged/{history.block_place(point_id(1), 5)[0].rsplit('/', 1)[1]}"
    history.store.objects[name] = envelope.encode("damage", 1, {"blocks": [5, number], "cause": "?"})
    history.backup()
    found(history)
    assert (history.untrue(), history.damaged()) == ([], [])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"next": None},
        {"next": "1"},
        {"next": [1]},
        {"next": float("inf")},
        {"at": "now"},
        {"next": 1, "later": True},
    ],
)
def test_a_malformed_verification_record_counts_for_nothing(body: dict[str, Any], history: History) -> None:
    for what in (point_id(1), "turn-all-2"):
        kind = "turn" if what == "turn-all-2" else "verified"
        history.store.objects[f"verified/{UUID}/{what}"] = envelope.encode(kind, 1, body)
    assert told(history)[0] == (None, False)
    assert [verdict.status for verdict in found(history, sample=50)] == ["ok", "ok"]
