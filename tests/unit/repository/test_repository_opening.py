"""A repository: opened, created, and refused where something else is."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from stores_for_tests import with_bit_flipped

from _cbt.errors import DamagedObject, ObjectMissing, RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.repository.creation import open_or_create
from _cbt.repository.format import envelope
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.stores.directory import DirectoryStore


def test_created_once_and_opened_ever_after_with_the_same_id(place: Path, repository: Repository) -> None:
    assert len(bytes.fromhex(repository.id)) == 16
    again = open_or_create(str(place))
    assert again is not None
    assert again.id == repository.id == open_repository(str(place)).id


def test_missing_folders_above_are_made_too(tmp_path: Path) -> None:
    open_or_create(str(tmp_path / "a" / "b" / "c"))
    assert (tmp_path / "a" / "b" / "c" / "repository.json").is_file()


def test_opening_a_missing_repository_explains_how_to_create_one(place: Path) -> None:
    with pytest.raises(RepositoryError, match="There is no repository in .*create_repository: true") as caught:
        open_repository(str(place))
    assert not isinstance(caught.value, ObjectMissing)
    assert not place.exists()


def test_check_only_creates_nothing(place: Path) -> None:
    assert open_or_create(str(place), check_only=True) is None
    assert not place.exists()


@pytest.mark.parametrize("left", ["tmp", "lost+found"])
def test_a_fresh_file_system_or_an_interrupted_creation_counts_as_empty(place: Path, left: str) -> None:
    (place / left).mkdir(parents=True)
    assert open_or_create(str(place)) is not None


@pytest.mark.parametrize("left", ["important.txt", ".hidden", "packs", "points"])
def test_a_directory_with_other_files_is_never_used(place: Path, left: str) -> None:
    (place / left).mkdir(parents=True)
    for opening in (open_repository, open_or_create):
        with pytest.raises(RepositoryError, match="is not a repository: it has files but no repository.json"):
            opening(str(place))
    assert [path.name for path in place.iterdir()] == [left]


def test_a_file_is_not_a_repository(place: Path) -> None:
    place.write_text("a file")
    for opening in (open_repository, open_or_create):
        with pytest.raises(RepositoryError, match="(?i)not a directory"):
            opening(str(place))
    assert place.read_text() == "a file"


def test_a_dangling_link_is_not_a_repository(place: Path) -> None:
    place.symlink_to(place.parent / "unmounted")
    with pytest.raises(RepositoryError, match="not a directory"):
        open_or_create(str(place))


@pytest.mark.parametrize("location", ["backups", "./backups", ""])
def test_a_relative_path_is_refused(location: str) -> None:
    for opening in (open_repository, open_or_create):
        with pytest.raises(RepositoryError, match="not an absolute path"):
            opening(location)


def test_a_newer_format_is_refused_by_name(place: Path, repository: Repository) -> None:
    repository.store.put("repository.json", envelope.encode("repository", 2, {"id": "x"}))
    with pytest.raises(RepositoryError, match=f"{place}/repository.json has format 2"):
        open_or_create(str(place))


@pytest.mark.parametrize("change", [{"features": ["encryption"]}, {"block_size": 4096}, {"hash": "blake3"}], ids=str)
def test_an_unknown_feature_is_refused(place: Path, repository: Repository, change: dict[str, object]) -> None:
    body = {"id": repository.id, "block_size": BLOCK_SIZE, "hash": "sha256", "features": []}
    repository.store.put("repository.json", envelope.encode("repository", 1, {**body, **change}))
    with pytest.raises(RepositoryError, match="uses features this version"):
        open_repository(str(place))


def test_every_flipped_bit_of_the_configuration_is_damage(place: Path, repository: Repository) -> None:
    path = place / "repository.json"
    data = path.read_bytes()
    for bit in range(len(data) * 8):
        path.write_bytes(with_bit_flipped(data, bit))
        with pytest.raises(DamagedObject):
            open_or_create(str(place))


def test_a_creator_that_loses_the_race_uses_the_repository_of_the_winner(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding no configuration and looking into the directory, another host creates the repository."""
    real, first = DirectoryStore.occupants, []

    def overtaken(store: DirectoryStore) -> set[str]:
        monkeypatch.setattr(DirectoryStore, "occupants", real)
        first.append(open_or_create(store.location))
        return real(store)

    monkeypatch.setattr(DirectoryStore, "occupants", overtaken)
    second = open_or_create(str(place))
    assert second is not None
    assert [each.id for each in first] == [second.id]


def test_many_creators_at_once_end_with_the_same_repository(tmp_path: Path) -> None:
    for turn in range(20):
        outcome: list[object] = []
        start = threading.Barrier(4)

        # pylint: disable-next=dangerous-default-value
        def create(
            place: str = str(tmp_path / str(turn)), start: threading.Barrier = start, outcome: list[object] = outcome
        ) -> None:
            start.wait()
            try:
                made = open_or_create(place)
                outcome.append(made.id if made else None)
            except Exception as error:
                outcome.append(error)

        threads = [threading.Thread(target=create) for _thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcome == [open_repository(str(tmp_path / str(turn))).id] * 4
