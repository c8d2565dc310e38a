"""A repository: its restore points published and listed, their files proven."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from samples import OTHER_UUID, UUID, point, point_id, random_bytes, record
from stores_for_tests import with_bit_flipped

from _cbt.errors import DamagedObject, ObjectMissing, Refused, RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.repository.format import envelope
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.repository import Repository
from _cbt.repository.stores.directory import DirectoryStore


def test_published_points_are_listed_oldest_first_and_by_domain(repository: Repository) -> None:
    made = [point(number) for number in (1, 2, 3)]
    other = point(4, uuid=OTHER_UUID, domain="db1")
    for each in (made[2], other, made[0], made[1]):
        repository.publish(each)
    assert repository.points_of(UUID).points == tuple(made)
    assert repository.points_of(OTHER_UUID).points == (other,)
    assert len(repository.points_of().points) == 4
    assert repository.points_of("00000000-0000-0000-0000-000000000000").points == ()


def test_a_point_with_no_manifest_or_an_unfinished_one_does_not_exist(repository: Repository) -> None:
    repository.put_files(point(1).folder, {"vda.map": b"map"})
    upload = repository.store.upload(f"{point(2).folder}/manifest.json")
    upload.write([b"half"], 0)
    listing = repository.points_of()
    assert (listing.points, dict(listing.damaged)) == ((), {})
    upload.abandon()


def test_a_damaged_manifest_is_reported_and_hides_no_other_point(place: Path, repository: Repository) -> None:
    repository.publish(point(1))
    repository.publish(point(2))
    name = f"{point(1).folder}/manifest.json"
    (place / name).write_bytes(with_bit_flipped((place / name).read_bytes(), 999))
    listing = repository.points_of()
    assert [each.id for each in listing.points] == [point_id(2)]
    assert list(listing.damaged) == [name]
    assert "damaged" in listing.damaged[name]


def test_a_point_of_a_newer_format_is_refused_by_name_and_not_passed_over(repository: Repository) -> None:
    repository.publish(point(1))
    repository.store.put(f"{point(2).folder}/manifest.json", envelope.encode("manifest", 2, {}))
    with pytest.raises(RepositoryError, match="has format 2"):
        repository.points_of()


def test_a_point_deleted_while_listing_is_passed_over(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        repository.publish(point(number))
    gone = f"{point(1).folder}/manifest.json"
    names = list(repository.store.list("points"))
    repository.store.delete(gone)
    monkeypatch.setattr(DirectoryStore, "list", lambda _store, _prefix: iter(names))
    listing = repository.points_of()
    assert ([each.id for each in listing.points], dict(listing.damaged)) == ([point_id(2)], {})


def test_a_replaced_truncated_or_missing_file_is_detected(place: Path, repository: Repository) -> None:
    file = repository.put_files(point(1).folder, {"domain.xml": b"<domain/>"})["domain.xml"]
    assert (file.size, file.sha256) == (9, hashlib.sha256(b"<domain/>").hexdigest())
    assert repository.get_file(point(1), file) == b"<domain/>"
    path = place / point(1).folder / "domain.xml"
    for changed in (b"<domain>", b"<domain/>\n", b"<DOMAIN/>", b""):
        path.write_bytes(changed)
        with pytest.raises(DamagedObject, match="it does not match its restore point"):
            repository.get_file(point(1), file)
    path.unlink()
    with pytest.raises(ObjectMissing):
        repository.get_file(point(1), file)


def test_files_stored_side_by_side_are_all_there_with_what_they_must_be(repository: Repository) -> None:
    given = {f"file{number}": random_bytes(1000 + number, number) for number in range(30)}
    stored = repository.put_files(point(1).folder, given)
    assert {name: repository.get_file(point(1), file) for name, file in stored.items()} == given
    assert all(file.name == name for name, file in stored.items())


def test_one_file_that_cannot_be_stored_is_an_error(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DirectoryStore.put

    def put(store: DirectoryStore, name: str, data: bytes, replace: bool = True) -> bool:
        if name.endswith("/file7"):
            raise RepositoryError("No space left on device.")
        return real(store, name, data, replace)

    monkeypatch.setattr(DirectoryStore, "put", put)
    with pytest.raises(RepositoryError, match="No space left"):
        repository.put_files(point(1).folder, {f"file{number}": b"x" for number in range(20)})


def test_two_domains_may_have_points_of_the_same_id(repository: Repository) -> None:
    """Ids are drawn by each host alone; one point must never hide another."""
    made = [point(1), point(1, uuid=OTHER_UUID, domain="db1")]
    for each in made:
        repository.publish(each)
    assert len(repository.points_of().points) == 2
    assert {each.uuid for each in repository.points_of().points} == {UUID, OTHER_UUID}


def test_a_map_is_read_for_its_disk_alone(repository: Repository) -> None:
    made = point(1)
    file = repository.put_files(made.folder, {"vda.map": MapBuilder(BLOCK_SIZE).finish({}).encode()})["vda.map"]
    made = dataclasses.replace(
        made, disks=(record(size=BLOCK_SIZE, map=file), record("vdb", size=2 * BLOCK_SIZE, map=file))
    )
    assert repository.read_map(made, "vda").size == BLOCK_SIZE
    with pytest.raises(DamagedObject, match="another size"):
        repository.read_map(made, "vdb")
    with pytest.raises(Refused, match="holds no disk vdc"):
        repository.read_map(made, "vdc")


def test_an_invalid_map_is_named_in_the_message(repository: Repository) -> None:
    made = point(1)
    made = dataclasses.replace(
        made, disks=(record(map=repository.put_files(made.folder, {"vda.map": b"no map"})["vda.map"]),)
    )
    with pytest.raises(DamagedObject, match=f"{made.folder}/vda.map is damaged: it is not an extent map"):
        repository.read_map(made, "vda")
