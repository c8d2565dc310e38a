# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any range of a disk reads as the disk did, whatever happens to the repository meanwhile, and damage is an error at its place only."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import samples
from engine_history import EngineHistory
from histories import BLOCKS, KEYS
from lab.process import wait_until
from samples import UUID, encoded, point_id, record
from stores_for_tests import MemoryStore

from _cbt.errors import CbtError, DamagedObject, ObjectMissing, RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.format import names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import holding, leases
from _cbt.repository.views import disk_view
from _cbt.repository.views.disk_view import CacheOptions, DiskView, Views

pytestmark = pytest.mark.usefixtures("no_thread_left")


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest) -> EngineHistory:
    """Three points of a disk with holes, of which each changes some blocks."""
    made = EngineHistory(KEYS[request.param])
    made.store.clock = 2e9  # after the points were made
    rng = random.Random(request.param)
    for number in range(3):
        for block in rng.sample(range(BLOCKS), BLOCKS // 3):
            made.disk.write(block, rng.choice([0, 1 + number * BLOCKS + block]))
        made.backup()
    return made


@pytest.fixture(params=["directly", "through the cache"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> CacheOptions | None:
    """No cache, or one that is too small for the disk."""
    return None if request.param == "directly" else CacheOptions(str(tmp_path), 2 << 20)


@pytest.fixture
def opened() -> Iterator[list[Views]]:
    """Views to close."""
    made: list[Views] = []
    yield made
    for each in made:
        each.close()


def view_of(
    opened: list[Views], repository: Repository, point: RestorePoint, cache: CacheOptions | None = None
) -> DiskView:
    opened.append(Views(repository, cache))
    return opened[-1].open(point, "vda")


def content(view: DiskView, offset: int, length: int) -> bytes:
    """What a client gets. The lengths of the pieces are those of their buffers."""
    found = b""
    for size, buffers in view.read(offset, length):
        piece = b"".join(map(bytes, buffers)) or bytes(size)
        assert len(piece) == size > 0
        found += piece
    return found


def ranges(size: int, seed: int, count: int) -> Iterator[tuple[int, int]]:
    """Ranges at the edges of blocks and of the disk, and anywhere; then all of it in order, in small requests."""
    rng = random.Random(seed)
    yield from ((0, size), (size - 1, 1), (0, 1), (BLOCK_SIZE - 1, 2), (size - BLOCK_SIZE, BLOCK_SIZE))
    for _number in range(count):
        offset = rng.choice([rng.randrange(size), rng.randrange(BLOCKS) * BLOCK_SIZE])
        offset = min(offset, size - 1)
        length = rng.choice([1, 512, 4096, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, rng.randrange(1, size)])
        yield offset, min(length, size - offset)
    yield from ((offset, min(16384, size - offset)) for offset in range(0, size, 16384))


def test_every_range_of_every_point_is_what_was_backed_up(
    history: EngineHistory, opened: list[Views], options: CacheOptions | None
) -> None:
    for point in history.fresh().points_of().points:
        view, truth = view_of(opened, history.repository, point, options), history.truth[point.id]
        assert view.size == len(truth)
        for offset, length in ranges(view.size, 1, 60):
            assert content(view, offset, length) == truth[offset : offset + length], (offset, length)


def test_extents_cover_a_range_and_hide_no_data(history: EngineHistory, opened: list[Views]) -> None:
    point = history.fresh().points_of().points[-1]
    view, truth = view_of(opened, history.repository, point), history.truth[point.id]
    for offset, length in ranges(view.size, 2, 60):
        at = offset
        for size, stored in view.extents(offset, length):
            assert size > 0
            part = truth[at : at + size]
            assert stored or not part.strip(b"\0")
            at += size
        assert at == offset + length
    assert not all(stored for _size, stored in view.extents(0, view.size))


def test_threads_read_what_was_backed_up(
    history: EngineHistory, opened: list[Views], options: CacheOptions | None
) -> None:
    point = history.fresh().points_of().points[-1]
    view, truth = view_of(opened, history.repository, point, options), history.truth[point.id]
    wrong: list[tuple[int, int]] = []

    def read(seed: int) -> None:
        wrong.extend(
            (offset, length)
            for offset, length in ranges(view.size, seed, 40)
            if content(view, offset, length) != truth[offset : offset + length]
        )

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_block_is_decoded_once_for_small_requests_and_ahead_of_sequential_ones(
    history: EngineHistory, opened: list[Views], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = history.fresh().points_of().points[-1]
    view = view_of(opened, history.repository, point)
    decoded: list[int] = []
    proven = view._proven
    monkeypatch.setattr(view, "_proven", lambda run: decoded.extend(range(run.first, run.stop)) or proven(run))
    for offset in range(0, view.size, 4096):
        content(view, offset, min(4096, view.size - offset))
    stored = [block for run in view._map.runs() for block in range(run.first, run.stop)]
    assert sorted(decoded) == stored
    content(view, 0, view.size)
    assert sorted(decoded) == sorted(stored * 2), "a long request goes past the cache"


def hurt(history: EngineHistory, point: RestorePoint, block: int) -> None:
    """Change one stored byte of a block."""
    (run,) = history.repository.read_map(point, "vda").runs(block, block + 1)
    start, length = history.repository.reader.directory(run.pack).span(run.ordinal, 1)
    data = bytearray(history.store.objects[run.pack.name])
    data[start + length // 2] ^= 1
    history.store.objects[run.pack.name] = bytes(data)
    history.fresh()


def test_damage_is_an_error_at_its_place_and_nowhere_else(
    history: EngineHistory, opened: list[Views], options: CacheOptions | None
) -> None:
    point = history.fresh().points_of().points[-1]
    truth, size = history.truth[point.id], len(history.truth[point.id])
    stored = [run.first for run in history.repository.read_map(point, "vda").runs()]
    block = stored[len(stored) // 2]
    hurt(history, point, block)
    view = view_of(opened, history.repository, point, options)
    bad = range(block * BLOCK_SIZE, min(size, (block + 1) * BLOCK_SIZE))
    for length in (4096, BLOCK_SIZE):
        for offset in range(0, size, length):
            count = min(length, size - offset)
            if offset in bad:
                with pytest.raises(DamagedObject):
                    content(view, offset, count)
            else:
                assert content(view, offset, count) == truth[offset : offset + count], offset
    read = 0
    with pytest.raises(DamagedObject):
        for length, _buffers in view.read(0, size):
            read += length
    assert bad.start - disk_view._AHEAD * BLOCK_SIZE <= read <= bad.start


def test_a_store_that_fails_is_an_error_until_it_is_back(
    history: EngineHistory, opened: list[Views], monkeypatch: pytest.MonkeyPatch, options: CacheOptions | None
) -> None:
    point = history.fresh().points_of().points[-1]
    view, truth = view_of(opened, history.repository, point, options), history.truth[point.id]

    def fail(name: str, *_rest: object) -> bytes:
        raise RepositoryError(f"Cannot read {name}: the share is away.")

    offset, length = next(view._map.runs()).first * BLOCK_SIZE, 4096
    with monkeypatch.context() as away:
        away.setattr(history.store, "get_range", fail)
        with pytest.raises(RepositoryError, match="the share is away"):
            content(view, offset, length)
    with contextlib.suppress(RepositoryError):  # a request that was under way when the store came back
        content(view, offset, length)
    for _again in range(2):
        assert content(view, offset, length) == truth[offset : offset + length]


def move(history: EngineHistory) -> None:
    """Remove all points but the last two that are not held, empty packs with dead blocks, and collect."""
    request = RetentionRequest(Rules(last=2), grace=0.0, compact_below=100, confirm_shrink=True)
    for _night in range(3):
        history.store.clock += leases.LAPSE * 2 + leases.ASTRAY
        retention(history.fresh(), request)


def test_blocks_that_moved_are_read_where_they_are(
    history: EngineHistory, opened: list[Views], options: CacheOptions | None
) -> None:
    """Without a hold, as in a repository that is read-only here."""
    point = history.fresh().points_of().points[-1]
    view, truth = view_of(opened, history.repository, point, options), history.truth[point.id]
    before = set(history.store.objects)
    move(history)
    gone = {name for name in before - set(history.store.objects) if name.startswith("packs/")}
    assert gone & {ref.name for ref in view._map.packs}, "nothing that the view reads from has moved"
    for offset, length in ranges(view.size, 3, 30):
        assert content(view, offset, length) == truth[offset : offset + length]


def test_a_point_that_is_gone_without_a_hold_is_an_error(history: EngineHistory, opened: list[Views]) -> None:
    points = history.fresh().points_of().points
    view = view_of(opened, history.repository, points[0])
    move(history)
    with pytest.raises(ObjectMissing):
        content(view, 0, view.size)


def test_a_held_point_is_read_while_nights_pass(
    history: EngineHistory, opened: list[Views], options: CacheOptions | None
) -> None:
    """Retention, compaction and days by the store's clock, in a loop beside a client that reads."""
    point = history.fresh().points_of().points[0]
    hold = holding.hold(history.repository, point, "export web1")
    assert hold.point is not None
    view, truth = view_of(opened, history.repository, hold.point, options), history.truth[point.id]
    over = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        seed = 0
        while not over.is_set():
            seed += 1
            try:
                wrong.extend(
                    (offset, length)
                    for offset, length in ranges(view.size, seed, 5)
                    if content(view, offset, length) != truth[offset : offset + length]
                )
            except CbtError as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for night in range(2):
        history.disk.write(night, 1000 + night)
        history.backup()
        history.store.clock += 3 * 86400
        move(history)
    over.set()
    reader.join()
    assert wrong == []
    assert point.id in {each.id for each in history.fresh().points_of().points}


def test_the_stored_bytes_are_fetched_ahead_along_the_map(opened: list[Views], tmp_path: Path) -> None:
    """Over several packs. A client that reads sequentially then waits for no request."""
    store, rng = MemoryStore(), random.Random(4)
    repository = Repository(store, "00" * 16)
    content_of, builder, written = {}, MapBuilder(400 * BLOCK_SIZE), {}
    for pack in range(4):
        writer = repository.writer()
        for block in range(pack * 100, pack * 100 + 90):
            content_of[block] = rng.randbytes(BLOCK_SIZE)
            builder.put(block, 1, *writer.append([encoded(content_of[block])]))
        written.update(writer.finish())
    extents = builder.finish(written)
    folder = names.point_folder(UUID, point_id(1))
    files = repository.put_files(folder, {names.map_file("vda"): extents.encode()})
    stored = samples.point(1, (record("vda", extents.size, map=files[names.map_file("vda")]),))
    view = view_of(opened, repository, stored, CacheOptions(str(tmp_path), 64 << 20))
    before = view._fetching._value
    for block in range(3):
        assert content(view, block * BLOCK_SIZE, BLOCK_SIZE) == content_of[block]
    wait_until(lambda: view._fetching._value == before, 30, "the end of the requests")
    wait_until(lambda: not opened[-1].packs._fetched, 30, "the answers of the store")  # type: ignore[union-attr]
    store.objects = {name: b"" for name in store.objects}
    for block in range(3, 3 + disk_view._FETCHED_AHEAD):
        expected = content_of.get(block, bytes(BLOCK_SIZE))
        assert content(view, block * BLOCK_SIZE, BLOCK_SIZE) == expected, block
