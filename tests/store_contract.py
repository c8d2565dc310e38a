"""What every store has to keep. A test module derives a class from StoreContract and gives it a fixture ``store``."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from _cbt.errors import ObjectMissing
from _cbt.repository.stores import Entry, Store


def random_bytes(length: int, seed: int) -> bytes:
    """The same bytes for the same seed."""
    return random.Random(seed).randbytes(length)


class StoreContract:
    """Tests of any store; ``store`` is empty at first."""

    def test_an_object_comes_back_whole_and_in_ranges(self, store: Store) -> None:
        data = random_bytes(10_000, 1)
        assert store.put("a/b/c", data)
        assert store.get("a/b/c") == data
        assert store.size("a/b/c") == 10_000
        assert store.get_range("a/b/c", 100, 50) == data[100:150]
        assert store.get_range("a/b/c", 0, 10_000) == data
        assert store.get_range("a/b/c", 9_990, 50) == data[9_990:]
        assert store.get_range("a/b/c", 10_000, 50) == b""
        assert store.get_range("a/b/c", 20_000, 50) == b""
        assert store.get_range("a/b/c", 5, 0) == b""

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        assert store.put("a/empty", b"")
        assert (store.get("a/empty"), store.size("a/empty"), store.get_range("a/empty", 0, 5)) == (b"", 0, b"")
        assert list(store.list("a")) == ["a/empty"]

    def test_put_replaces_and_without_replace_keeps_what_is_there(self, store: Store) -> None:
        assert store.put("x", b"one")
        assert not store.put("x", b"two", replace=False)
        assert store.get("x") == b"one"
        assert store.put("x", b"three")
        assert store.get("x") == b"three"
        assert store.put("y", b"new", replace=False)
        assert store.get("y") == b"new"

    def test_of_several_that_put_without_replace_exactly_one_wins(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda number: store.put("x", str(number).encode(), replace=False), range(8)))
        (winner,) = [number for number, each in enumerate(won) if each]
        assert store.get("x") == str(winner).encode()

    def test_an_upload_takes_ranges_in_any_order_and_appears_only_when_committed(self, store: Store) -> None:
        upload = store.upload("packs/aa/x")
        upload.write([b"world", bytearray(b"!"), memoryview(b"!")], 6)
        upload.write([b"hello "], 0)
        assert not list(store.list("packs"))
        with pytest.raises(ObjectMissing):
            store.get("packs/aa/x")
        assert upload.commit()
        assert store.get("packs/aa/x") == b"hello world!!"
        upload.abandon()
        assert list(store.list("packs")) == ["packs/aa/x"]

    def test_a_large_upload_written_by_several_threads_comes_back_as_it_was(self, store: Store) -> None:
        data = random_bytes((40 << 20) + 12_345, 2)
        piece = 1 << 20
        offsets = list(range(0, len(data), piece))
        random.Random(3).shuffle(offsets)
        upload = store.upload("packs/aa/large")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda offset: upload.write([data[offset : offset + 1000], data[offset + 1000 : offset + piece]], offset), offsets))
        assert upload.commit()
        assert store.size("packs/aa/large") == len(data)
        assert store.get("packs/aa/large") == data
        assert store.get_range("packs/aa/large", 16 << 20, 3 << 20) == data[16 << 20 : 19 << 20]

    def test_an_abandoned_upload_leaves_nothing(self, store: Store) -> None:
        upload = store.upload("a/x")
        upload.write([b"data"], 0)
        upload.abandon()
        upload.abandon()
        assert list(store.list("a")) == []

    def test_an_upload_without_replace_does_not_take_the_place_of_another(self, store: Store) -> None:
        store.put("a/x", b"first")
        upload = store.upload("a/x")
        upload.write([b"second"], 0)
        assert not upload.commit(replace=False)
        upload.abandon()
        assert store.get("a/x") == b"first"

    def test_listing_is_by_folder_and_skips_objects_in_the_making(self, store: Store) -> None:
        for name in ("points/u/1/manifest.json", "points/u/1/vda.map", "points/v/2/manifest.json", "pointsX", "packs/aa/aabb"):
            store.put(name, b"x")
        upload = store.upload("points/u/3/manifest.json")
        assert sorted(store.list("points")) == ["points/u/1/manifest.json", "points/u/1/vda.map", "points/v/2/manifest.json"]
        assert list(store.list("points/v")) == ["points/v/2/manifest.json"]
        assert list(store.list("packs")) == ["packs/aa/aabb"]
        assert list(store.list("leases")) == []
        assert store.occupants() == {"points", "pointsX", "packs"}
        upload.abandon()

    def test_names_of_any_kind_are_listed_as_they_are(self, store: Store) -> None:
        names = ["points/ä b/1+1.map", "points/ä b/100%.map", "points/ä b/x=y&z.map"]
        for name in names:
            store.put(name, name.encode())
        assert sorted(store.list("points")) == sorted(names)
        assert [store.get(name) for name in names] == [name.encode() for name in names]

    def test_entries_tell_size_and_time_by_one_clock(self, store: Store) -> None:
        store.put("a/first", b"x" * 100)
        store.put("a/second", b"")
        entries = {entry.name: entry for entry in store.entries("a")}
        assert {name: entry.size for name, entry in entries.items()} == {"a/first": 100, "a/second": 0}
        for entry in entries.values():
            assert isinstance(entry, Entry)
            assert abs(entry.modified - store.modified(entry.name)) <= 1  # some stores round to seconds in one of the two
            assert entries["a/first"].modified <= entries["a/second"].modified

    def test_deleting_forgives_a_missing_object(self, store: Store) -> None:
        store.put("points/u/1/a", b"x")
        store.put("points/u/1/b", b"x")
        store.delete("points/u/1/a")
        assert list(store.list("points")) == ["points/u/1/b"]
        store.delete("points/u/1/b")
        store.delete("points/u/1/b")
        store.delete("never/was")
        assert list(store.list("points")) == []
        assert store.put("points/u/1/a", b"again", replace=False)

    @pytest.mark.parametrize("operation", ["get", "size", "modified"])
    def test_a_missing_object_is_missing(self, store: Store, operation: str) -> None:
        with pytest.raises(ObjectMissing, match=r"no/such: it does not exist"):
            getattr(store, operation)("no/such")
        for length in (0, 1):
            with pytest.raises(ObjectMissing):
                store.get_range("no/such", 0, length)

    def test_what_nobody_locked_may_go(self, store: Store) -> None:
        store.put("a/x", b"x")
        store.put("a/y", b"y")
        store.protect(["a/x"], like="a/y")
        assert store.locked_until("a/x") is None
        store.delete("a/x")
        assert list(store.list("a")) == ["a/y"]

    def test_a_sweep_spares_what_is_stored_and_what_is_in_the_making(self, store: Store) -> None:
        store.put("packs/aa/x", b"x")
        upload = store.upload("packs/aa/y")
        upload.write([b"y"], 0)
        store.sweep()
        assert upload.commit()
        assert sorted(store.list("packs")) == ["packs/aa/x", "packs/aa/y"]

    def test_the_time_of_an_object_is_near_now(self, store: Store) -> None:
        store.put("a/x", b"x")
        assert abs(store.modified("a/x") - time.time()) < 3600 or store.location == "memory"
