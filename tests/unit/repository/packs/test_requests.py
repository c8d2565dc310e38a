"""How many requests a backup needs to be sure of its packs, and that they do not wait for each other."""

from __future__ import annotations

import collections
import threading

import pytest
from samples import UUID, pack_ref, point, record
from stores_for_tests import MemoryStore

from _cbt.grid import BLOCK_SIZE
from _cbt.repository.format import names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.records import damage
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import publishing
from _cbt.repository.sharing.leases import Lease

PACKS = [pack_ref(number, 4) for number in range(200)]
AT_ONCE = 8


class Counting(MemoryStore):
    """Counts requests by kind and folder; those for the size of a pack are answered when there are so many of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self._counting = threading.Lock()
        self.requests: collections.Counter[str] = collections.Counter()
        self.meeting = threading.Barrier(AT_ONCE, timeout=20)

    def size(self, name: str) -> int:
        with self._counting:
            self.requests[f"size {name.split('/')[0]}"] += 1
        self.meeting.wait()
        return len(self.objects[name])

    def get(self, name: str, most: int | None = None) -> bytes:
        self.requests[f"get {name.split('/')[0]}"] += 1
        return super().get(name, most)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        raise AssertionError("no pack is read")

    def list(self, prefix: str):  # type: ignore[no-untyped-def]
        self.requests[f"list {prefix}"] += 1
        return super().list(prefix)


@pytest.fixture
def store() -> Counting:
    """Packs that are only as long as they should be."""
    made = Counting()
    made.objects.update({ref.name: bytes(ref.size) for ref in PACKS})
    return made


def made_point(repository: Repository) -> RestorePoint:
    """A point whose disks name all the packs."""
    disks = []
    for target in ("vda", "vdb"):
        builder = MapBuilder(len(PACKS) * BLOCK_SIZE)
        for block, ref in enumerate(PACKS):
            builder.put(block, 1, ref.id, 0)
        files = repository.put_files(
            names.point_folder(UUID, point(1).id),
            {f"{target}.map": builder.finish({ref.id: ref for ref in PACKS}).encode()},
        )
        disks.append(record(target, len(PACKS) * BLOCK_SIZE, map=files[f"{target}.map"]))
    return point(1, tuple(disks))


def test_each_pack_is_looked_at_once_and_eight_at_a_time(store: Counting) -> None:
    assert damage.unsound_packs(Repository(store, UUID), PACKS) == {}  # type: ignore[arg-type]
    assert store.requests == {"size packs": len(PACKS)}


def test_checking_packs_for_presence_and_pending_deletion_takes_one_request_each_and_two_listings(
    store: Counting,
) -> None:
    repository = Repository(store, "0" * 32)  # type: ignore[arg-type]
    made = made_point(repository)
    store.meeting = threading.Barrier(1)  # the maps are looked at among the packs
    assert publishing.missing(repository, made) == set()
    assert store.requests == {
        "get points": 2,
        "list condemned": 1,
        "list doomed": 1,
        "size packs": len(PACKS),
        "size points": 2,
    }


def test_replacing_a_point_checks_only_its_new_objects(store: Counting) -> None:
    repository = Repository(store, "0" * 32)  # type: ignore[arg-type]
    made = made_point(repository)
    store.meeting = threading.Barrier(1)
    assert publishing.missing(repository, made, {PACKS[3].name}) == set()
    assert store.requests["size packs"] == 1


def test_an_object_stored_by_the_session_itself_is_checked_like_any_other(store: Counting) -> None:
    repository = Repository(store, "0" * 32)  # type: ignore[arg-type]
    made = made_point(repository)
    store.meeting = threading.Barrier(1)
    publishing.publish(Lease(repository, "backup"), made, lambda lost: pytest.fail(f"{lost} are there"))
    assert store.requests["size packs"] == len(PACKS)
