"""What every store has to keep. A test module derives a class from StoreContract and gives it a fixture ``store``."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from _cbt.errors import DamagedObject, ObjectMissing, RepositoryError
from _cbt.repository.format.names import KINDS
from _cbt.repository.stores.base import Entry, Store

PACK, OTHER_PACK = "packs/aa/aa" + "0" * 30, "packs/aa/aa" + "1" * 30
LEASE, OTHER_LEASE, MISSING = "leases/" + "0" * 16, "leases/" + "1" * 16, "leases/" + "f" * 16
POINT = "points/6f1d0a52-9a3c-4c0e-8a53-0d1b1f6f4a11/20260101T120000Z-00000001"
BAD_NAMES = (
    *(
        "",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "../x",
        "x",
        "repository.json/x",
        "repository.json\n",
        "tmp/x",
        "packs",
        "packs/",
        "packs//",
        "packs/aa/..",
        "packs/../x",
    ),
    *(
        "packs/ab/aa" + "0" * 30,
        "packs/aa/aa" + "0" * 29,
        "packs/aa/AA" + "0" * 30,
        "packs/aa/aa" + "0" * 30 + "/x",
        "packs/aa/aa" + "0" * 29 + "\0",
    ),
    *(
        "leases/..",
        "leases/" + "0" * 15 + "\n",
        "leases/" + "0" * 100_000,
        "leases/" + "\u0660" * 16,
        "leases//" + "0" * 16,
    ),
    *(
        f"{POINT}/{file}"
        for file in (
            "",
            ".",
            "..",
            "../x",
            ".hidden",
            "a/b",
            "a b",
            "a\0",
            "a\x1b",
            "x" * 129,
            "\u00e4.map",
            "\udcff",
            "-x",
        )
    ),
)
OTHER_POINT = "points/b9a7f3d0-1111-4222-8333-444455556666/20260102T120000Z-00000002"


def random_bytes(length: int, seed: int) -> bytes:
    """The same bytes for the same seed."""
    return random.Random(seed).randbytes(length)


class StoreContract:
    """Tests of any store; ``store`` is empty at first."""

    def test_an_object_comes_back_whole_and_in_ranges(self, store: Store) -> None:
        data = random_bytes(10_000, 1)
        assert store.put(LEASE, data)
        assert store.get(LEASE) == data
        assert store.size(LEASE) == 10_000
        assert store.get_range(LEASE, 100, 50) == data[100:150]
        assert store.get_range(LEASE, 0, 10_000) == data
        assert store.get_range(LEASE, 9_990, 50) == data[9_990:]
        assert store.get_range(LEASE, 10_000, 50) == b""
        assert store.get_range(LEASE, 20_000, 50) == b""
        assert store.get_range(LEASE, 5, 0) == b""

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        assert store.put(LEASE, b"")
        assert (store.get(LEASE), store.size(LEASE), store.get_range(LEASE, 0, 5)) == (b"", 0, b"")
        assert list(store.list("leases")) == [LEASE]

    def test_put_replaces_and_without_replace_keeps_what_is_there(self, store: Store) -> None:
        assert store.put("repository.json", b"one")
        assert not store.put("repository.json", b"two", replace=False)
        assert store.get("repository.json") == b"one"
        assert store.put("repository.json", b"three")
        assert store.get("repository.json") == b"three"
        assert store.put("collected.json", b"new", replace=False)
        assert store.get("collected.json") == b"new"

    def test_exactly_one_of_several_concurrent_puts_without_replace_wins(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            won = list(
                pool.map(lambda number: store.put("repository.json", str(number).encode(), replace=False), range(8))
            )
        (winner,) = [number for number, each in enumerate(won) if each]
        assert store.get("repository.json") == str(winner).encode()

    def test_swap_replaces_only_what_is_there(self, store: Store) -> None:
        store.put("repository.json", b"one")
        assert not store.swap("repository.json", b"another", b"two")
        assert store.get("repository.json") == b"one"
        assert store.swap("repository.json", b"one", b"two")
        assert store.get("repository.json") == b"two"
        assert not store.swap("collected.json", b"", b"new")
        with pytest.raises(ObjectMissing):
            store.get("collected.json")

    def test_exactly_one_of_several_concurrent_swaps_wins(self, store: Store) -> None:
        for turn in range(4):
            store.put("repository.json", b"before")
            with ThreadPoolExecutor(8) as pool:
                won = list(
                    pool.map(lambda number: store.swap("repository.json", b"before", str(number).encode()), range(8))
                )
            (winner,) = [number for number, each in enumerate(won) if each]
            assert store.get("repository.json") == str(winner).encode(), turn

    def test_an_upload_takes_ranges_in_any_order_and_appears_only_when_committed(self, store: Store) -> None:
        upload = store.upload(PACK)
        upload.write([b"world", bytearray(b"!"), memoryview(b"!")], 6)
        upload.write([b"hello "], 0)
        assert not list(store.list("packs"))
        with pytest.raises(ObjectMissing):
            store.get(PACK)
        assert upload.commit()
        assert store.get(PACK) == b"hello world!!"
        upload.abandon()
        assert list(store.list("packs")) == [PACK]

    def test_a_large_upload_written_by_several_threads_round_trips(self, store: Store) -> None:
        data = random_bytes((40 << 20) + 12_345, 2)
        piece = 1 << 20
        offsets = list(range(0, len(data), piece))
        random.Random(3).shuffle(offsets)
        upload = store.upload(PACK)
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(
                    lambda offset: upload.write(
                        [data[offset : offset + 1000], data[offset + 1000 : offset + piece]], offset
                    ),
                    offsets,
                )
            )
        assert upload.commit()
        assert store.size(PACK) == len(data)
        assert store.get(PACK) == data
        assert store.get_range(PACK, 16 << 20, 3 << 20) == data[16 << 20 : 19 << 20]

    def test_an_abandoned_upload_leaves_nothing(self, store: Store) -> None:
        upload = store.upload(LEASE)
        upload.write([b"data"], 0)
        upload.abandon()
        upload.abandon()
        assert list(store.list("leases")) == []

    def test_an_upload_without_replace_does_not_take_the_place_of_another(self, store: Store) -> None:
        store.put(LEASE, b"first")
        upload = store.upload(LEASE)
        upload.write([b"second"], 0)
        assert not upload.commit(replace=False)
        upload.abandon()
        assert store.get(LEASE) == b"first"

    def test_listing_is_by_folder_and_skips_unfinished_objects(self, store: Store) -> None:
        for name in (
            f"{POINT}/manifest.json",
            f"{POINT}/vda.map",
            f"{OTHER_POINT}/manifest.json",
            "collected.json",
            PACK,
        ):
            store.put(name, b"x")
        upload = store.upload(f"{POINT[:-1]}3/manifest.json")
        assert sorted(store.list("points")) == [
            f"{POINT}/manifest.json",
            f"{POINT}/vda.map",
            f"{OTHER_POINT}/manifest.json",
        ]
        assert list(store.list(OTHER_POINT.rpartition("/")[0])) == [f"{OTHER_POINT}/manifest.json"]
        assert list(store.list("packs")) == [PACK]
        assert list(store.list("leases")) == []
        assert store.occupants() == {"points", "collected.json", "packs"}
        upload.abandon()

    def test_names_of_any_kind_are_listed_as_they_are(self, store: Store) -> None:
        names = [f"{POINT}/{name}" for name in ("1+1.map", "domain.xml-2", "Kernel_1.0", "vda-01234567.map")]
        for name in names:
            store.put(name, name.encode())
        assert sorted(store.list("points")) == sorted(names)
        assert [store.get(name) for name in names] == [name.encode() for name in names]
        assert not store.foreign.words()

    @pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
    def test_every_call_refuses_an_invalid_object_name(self, store: Store, name: str) -> None:
        acts: list[Callable[[], object]] = [
            lambda: store.put(name, b"x"),
            lambda: store.put(name, b"x", replace=False),
            lambda: store.upload(name),
            lambda: store.get(name),
            lambda: store.get_range(name, 0, 1),
            lambda: store.get_range(name, 0, 0),
            lambda: store.size(name),
            lambda: store.modified(name),
            lambda: store.delete(name),
        ]
        for act in acts:
            with pytest.raises(DamagedObject, match="No object of a repository can be called"):
                act()

    @pytest.mark.parametrize(
        "prefix",
        ["", ".", "..", "/", "points/..", "points/", "../points", "points/x", "tmp", "packs/AA", "packs/aa/aa"],
    )
    def test_an_invalid_object_folder_is_not_listed(self, store: Store, prefix: str) -> None:
        for listing in (store.list, store.entries):
            with pytest.raises(DamagedObject, match="No folder of a repository can be called"):
                list(listing(prefix))

    def test_an_object_larger_than_any_of_its_kind_or_than_asked_for_is_not_read(self, store: Store) -> None:
        store.put(LEASE, bytes((64 << 10) + 40))
        assert len(store.get(LEASE)) == (64 << 10) + 40
        with pytest.raises(
            DamagedObject, match=r"leases/0{16} is damaged: it has 65576 bytes and cannot have more than 100"
        ):
            store.get(LEASE, 100)
        store.put(LEASE, bytes((64 << 10) + 41))
        with pytest.raises(
            DamagedObject, match=r"leases/0{16} is damaged: it has 65577 bytes and cannot have more than 65576"
        ):
            store.get(LEASE)

    def test_more_objects_than_any_repository_holds_are_an_error(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put(LEASE, b"")
        store.put(OTHER_LEASE, b"")
        monkeypatch.setattr("_cbt.repository.stores.base.MOST_LISTED", 1)
        for listing in (store.list, store.entries):
            with pytest.raises(RepositoryError, match="Cannot list leases in .*: more than 1 objects are there"):
                list(listing("leases"))

    def test_entries_report_sizes_and_the_times_of_one_clock(self, store: Store) -> None:
        store.put(LEASE, b"x" * 100)
        store.put(OTHER_LEASE, b"")
        entries = {entry.name: entry for entry in store.entries("leases")}
        assert {name: entry.size for name, entry in entries.items()} == {LEASE: 100, OTHER_LEASE: 0}
        for entry in entries.values():
            assert isinstance(entry, Entry)
            # Some stores round to seconds in one of the two.
            assert abs(entry.modified - store.modified(entry.name)) <= 1
            assert entries[LEASE].modified <= entries[OTHER_LEASE].modified

    def test_deleting_forgives_a_missing_object(self, store: Store) -> None:
        store.put(f"{POINT}/a", b"x")
        store.put(f"{POINT}/b", b"x")
        store.delete(f"{POINT}/a")
        assert list(store.list("points")) == [f"{POINT}/b"]
        store.delete(f"{POINT}/b")
        store.delete(f"{POINT}/b")
        store.delete(MISSING)
        assert list(store.list("points")) == []
        assert store.put(f"{POINT}/a", b"again", replace=False)

    @pytest.mark.parametrize("operation", ["get", "size", "modified"])
    def test_a_missing_object_is_missing(self, store: Store, operation: str) -> None:
        with pytest.raises(ObjectMissing, match=r"leases/f{16}: it does not exist"):
            getattr(store, operation)(MISSING)
        for length in (0, 1):
            with pytest.raises(ObjectMissing):
                store.get_range(MISSING, 0, length)

    def test_an_unlocked_object_can_be_deleted(self, store: Store) -> None:
        store.put(LEASE, b"x")
        store.put(OTHER_LEASE, b"y")
        store.protect([LEASE], like=OTHER_LEASE)
        assert store.locked_until(LEASE) is None
        store.delete(LEASE)
        assert list(store.list("leases")) == [OTHER_LEASE]

    def test_a_sweep_spares_stored_objects_and_uploads_in_progress(self, store: Store) -> None:
        store.put(PACK, b"x")
        upload = store.upload(OTHER_PACK)
        upload.write([b"y"], 0)
        store.sweep()
        assert upload.commit()
        assert sorted(store.list("packs")) == [PACK, OTHER_PACK]

    def test_the_time_of_an_object_is_near_now(self, store: Store) -> None:
        store.put(LEASE, b"x")
        assert abs(store.modified(LEASE) - time.time()) < 3600 or store.location == "memory"

    def test_a_store_says_where_it_is_and_what_to_check(self, store: Store) -> None:
        addresses = store.addresses()
        assert addresses and all(addresses)
        assert list(store.addresses()) == list(addresses)
        assert store.location in addresses[-1] or store.local_path is not None
        assert store.advice().endswith(".")
        store.check_creatable()

    def test_the_reserve_is_in_use_only_inside_its_block(self, store: Store) -> None:
        with pytest.raises(KeyError), store.reserve.in_use():
            assert store.reserve.spare == 0
            store.reserve.spare_for_collecting()
            assert 0 < store.reserve.spare < 1
            raise KeyError
        assert store.reserve.spare is None
        assert not store.reserve.was_used
        folders = {kind.template.partition("/")[0] for kind in KINDS if "/" in kind.template}
        assert not {name for folder in folders for name in store.list(folder)}
