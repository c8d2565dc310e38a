# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache on disk returns what the store has, never grows beyond its size, and asks for nothing twice that it holds."""

from __future__ import annotations

import collections
import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from _cbt.errors import CbtError, ObjectMissing
from _cbt.repository.views import pack_cache
from _cbt.repository.views.pack_cache import SEGMENT, PackCache

pytestmark = pytest.mark.usefixtures("no_thread_left")


class Source:
    """Two packs, of which the second ends within a segment; counts requests."""

    def __init__(self) -> None:
        rng = random.Random(1)
        self.packs = {"one": rng.randbytes(3 * SEGMENT), "two": rng.randbytes(2 * SEGMENT + 1000)}
        self.asked: collections.Counter[tuple[str, int]] = collections.Counter()
        self.open = threading.Event()
        self.open.set()

    def size(self, name: str) -> int:
        return len(self.packs[name])

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self.asked[(name, offset // SEGMENT)] += 1
        assert (offset % SEGMENT, length) == (0, SEGMENT)
        self.open.wait(30)
        if name not in self.packs:
            raise ObjectMissing(name)
        return self.packs[name][offset : offset + length]


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def cache(source: Source, tmp_path: Path) -> Iterator[PackCache]:
    made = PackCache(source, str(tmp_path), 3 * SEGMENT)
    yield made
    source.open.set()
    made.close()


def file_size(cache: PackCache) -> int:
    return os.fstat(cache._file.fileno()).st_size


def test_any_range_is_what_the_store_has_and_the_file_has_a_bound(
    source: Source, cache: PackCache, tmp_path: Path
) -> None:
    rng = random.Random(2)
    for _number in range(200):
        name = rng.choice(["one", "two"])
        offset = rng.randrange(len(source.packs[name]))
        length = rng.choice([1, 100, 65536, SEGMENT, rng.randrange(1, 3 * SEGMENT)])
        assert cache.get_range(name, offset, length) == source.packs[name][offset : offset + length]
        assert file_size(cache) <= 3 * SEGMENT
    assert list(tmp_path.iterdir()) == [], "it has no name"
    assert cache.size("two") == 2 * SEGMENT + 1000
    assert cache.get_range("two", 2 * SEGMENT + 900, SEGMENT) == source.packs["two"][-100:]
    assert cache.get_range("two", 0, 0) == b""


def test_what_is_kept_is_not_asked_for_again_and_what_was_used_last_is_kept(source: Source, cache: PackCache) -> None:
    for number in (0, 1, 2, 0, 1, 2):
        cache.get_range("one", number * SEGMENT, 10)
    assert source.asked == {("one", 0): 1, ("one", 1): 1, ("one", 2): 1}
    cache.get_range("two", 0, 10)  # in the slot of the segment that was not used for longest
    for number in (1, 2):
        cache.get_range("one", number * SEGMENT, 10)
    assert source.asked[("one", 1)] == source.asked[("one", 2)] == 1
    cache.get_range("one", 0, 10)
    assert source.asked[("one", 0)] == 2


def test_several_who_ask_at_once_share_a_request(source: Source, cache: PackCache) -> None:
    source.open.clear()
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(cache.get_range("one", 5, 10))) for _number in range(5)]
    for thread in threads:
        thread.start()
    cache.fetch("one", 0, SEGMENT)
    source.open.set()
    for thread in threads:
        thread.join()
    cache.wait("one", 0, SEGMENT)
    assert got == [source.packs["one"][5:15]] * 5
    assert source.asked == {("one", 0): 1}


def test_an_error_is_for_those_who_ask_and_is_not_kept(source: Source, cache: PackCache) -> None:
    for _again in range(2):
        with pytest.raises(ObjectMissing):
            cache.get_range("three", 0, 10)
        with pytest.raises(ObjectMissing):
            cache.wait("three", 0, 10)
    source.packs["three"] = b"x" * 100
    assert cache.get_range("three", 0, 10) == b"x" * 10


def test_fetching_ahead_has_a_bound(source: Source, cache: PackCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_cache, "_MOST_AHEAD", 2)
    source.open.clear()
    cache.fetch("one", 0, 3 * SEGMENT)
    source.open.set()
    cache.wait("one", 0, 2 * SEGMENT)
    assert set(source.asked) == {("one", 0), ("one", 1)}


def test_a_slot_that_is_given_away_during_a_read_is_not_believed(
    source: Source, cache: PackCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get_range("one", 0, 10)
    pread = os.pread

    def slow(handle: int, length: int, offset: int) -> bytes:
        monkeypatch.undo()
        for number in range(3):
            cache.get_range("two", number * SEGMENT, 10)  # takes all slots
        return pread(handle, length, offset)

    monkeypatch.setattr(pack_cache.os, "pread", slow)
    assert cache.get_range("one", 0, 1000) == source.packs["one"][:1000]
    assert source.asked[("one", 0)] == 2


@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_a_cache_that_fails_costs_requests_and_nothing_else(
    source: Source, cache: PackCache, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_arguments: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as changed:
        changed.setattr(pack_cache.os, call, fail)
        for _again in range(4):
            assert cache.get_range("one", 100, SEGMENT) == source.packs["one"][100 : SEGMENT + 100]
        assert source.asked[("one", 0)] == 4 if call == "pwrite" else source.asked[("one", 0)] > 1
    for _again in range(4):
        assert cache.get_range("one", 100, SEGMENT) == source.packs["one"][100 : SEGMENT + 100]


def test_a_folder_that_cannot_be_written_is_refused_by_name(source: Source, tmp_path: Path) -> None:
    with pytest.raises(CbtError, match=f"{tmp_path}/nothing"):
        PackCache(source, f"{tmp_path}/nothing", SEGMENT)
