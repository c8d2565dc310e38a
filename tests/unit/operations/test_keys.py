"""Key slots: who can open a repository is changed by one object, never by mistake, and never so that nobody can."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import fcntl
import hashlib
from pathlib import Path

import pytest
from samples import point

from _cbt.errors import CbtError, DamagedObject, PassphraseRefused, Refused, RepositoryError
from _cbt.operations import keys
from _cbt.operations.keys import KeyChange, KeyRequest, apply_keys
from _cbt.repository.crypto import key_slots
from _cbt.repository.crypto.key_slots import Slot
from _cbt.repository.format import configuration
from _cbt.repository.format.configuration import Configuration
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.stores.base import Store
from _cbt.repository.stores.directory import DirectoryStore


def _no_locks(_handle: int, _how: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


OBJECT = f"{point(1).folder}/vda.map"


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying one takes no noticeable time."""
    monkeypatch.setattr(key_slots, "COST", 16)


def asked(
    place: Path,
    passphrase: str | None = None,
    new: str | None = None,
    slot: str = "default",
    remove: tuple[str, ...] = (),
    check: bool = False,
) -> KeyChange:
    return apply_keys(RepositoryLocation(str(place), passphrase=passphrase), KeyRequest(new, slot, remove), check)


def opens(place: Path, passphrase: str) -> bool:
    try:
        return bool(open_repository(RepositoryLocation(str(place), passphrase=passphrase)).slots)
    except PassphraseRefused:
        return False


def everything(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def protected(place: Path) -> Repository:
    asked(place, "old")
    made = open_repository(RepositoryLocation(str(place), passphrase="old"))
    made.put_object(OBJECT, b"a map")
    return made


@pytest.mark.parametrize("passphrase", [None, "old"])
def test_created_once_encrypted_if_there_is_a_passphrase(place: Path, passphrase: str | None) -> None:
    predicted = asked(place, passphrase, check=True)
    assert predicted.changed and predicted.before is None
    assert not place.exists()
    made = asked(place, passphrase)
    assert made.changed
    assert (
        (made.after.encrypted, tuple(made.after.slots))
        == (predicted.after.encrypted, tuple(predicted.after.slots))
        == ((True, ("default",)) if passphrase else (False, ()))
    )
    assert open_repository(RepositoryLocation(str(place), passphrase=passphrase)).id == made.after.id
    again = asked(place, passphrase)
    assert not again.changed and again.after == made.after


def test_a_new_passphrase_replaces_the_old_one_and_no_other_object_changes(place: Path, protected: Repository) -> None:
    before = everything(place)
    assert asked(place, "old", "new", check=True).changed
    assert everything(place) == before
    assert asked(place, "old", "new").changed
    after = everything(place)
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} == {"repository.json"}
    assert (opens(place, "old"), opens(place, "new")) == (False, True)
    assert open_repository(RepositoryLocation(str(place), passphrase="new")).get_object(OBJECT) == b"a map"


def test_the_second_run_changes_nothing_whatever_passphrase_is_given_with_it(
    place: Path, protected: Repository
) -> None:
    asked(place, "old", "new")
    before = everything(place)
    for passphrase in ("old", "new", "forgotten", None):
        assert not asked(place, passphrase, "new").changed
    assert everything(place) == before


def test_slots_are_added_changed_and_removed_by_name(place: Path, protected: Repository) -> None:
    assert asked(place, "old", "spare", "emergency").changed
    assert not asked(place, "old", "spare", "emergency").changed
    assert opens(place, "old") and opens(place, "spare")
    assert asked(place, "old", "spare 2", "emergency").changed
    assert [opens(place, each) for each in ("old", "spare", "spare 2")] == [True, False, True]
    removed = asked(place, "spare 2", remove=("default", "never there"))
    assert removed.changed and tuple(removed.after.slots) == ("emergency",)
    assert [opens(place, each) for each in ("old", "spare 2")] == [False, True]
    assert not asked(place, "spare 2", remove=("default", "never there")).changed


def test_one_passphrase_may_open_two_slots(place: Path, protected: Repository) -> None:
    assert asked(place, "old", "old", "second").changed
    assert asked(place, "old", remove=("default",)).changed
    assert opens(place, "old")


@pytest.mark.parametrize("new", [None, "spare"])
def test_the_last_slot_that_opens_is_never_removed(place: Path, protected: Repository, new: str | None) -> None:
    """Not even where others remain, of which nobody present has the passphrase."""
    asked(place, "old", "spare", "emergency")
    asked(place, "spare", "theirs", "default")
    before = everything(place)
    for check in (True, False):
        with pytest.raises(Refused, match="Cannot remove the last key slot"):
            asked(place, "spare", remove=("emergency",), check=check)
    assert everything(place) == before
    with pytest.raises(Refused):
        asked(place, "spare", new, "default" if new is None else "emergency", ("emergency",))
    assert everything(place) == before


REFUSED: list[tuple[dict[str, object], type[CbtError], str]] = [
    ({"passphrase": "wrong", "new": "also wrong"}, PassphraseRefused, "No passphrase given opens a key slot"),
    ({"passphrase": "wrong"}, PassphraseRefused, "No passphrase given opens a key slot"),
    ({}, PassphraseRefused, "is encrypted. Give its passphrase"),
    ({"remove": ("default",)}, PassphraseRefused, "is encrypted. Give its passphrase"),
    ({"passphrase": "old", "new": ""}, PassphraseRefused, "is empty"),
    ({"passphrase": "old", "new": "x", "slot": "a b"}, Refused, "cannot be named a b"),
    ({"passphrase": "old", "new": "x", "slot": "s", "remove": ("s",)}, Refused, "set and removed at once"),
]


@pytest.mark.parametrize(("request_", "error", "message"), REFUSED)
def test_an_impossible_request_is_refused_even_in_check_mode_and_changes_nothing(
    place: Path, protected: Repository, request_: dict[str, object], error: type[CbtError], message: str
) -> None:
    before = everything(place)
    for check in (True, False):
        with pytest.raises(error, match=message):
            asked(place, check=check, **request_)  # type: ignore[arg-type]
    assert everything(place) == before


@pytest.mark.parametrize(("slots", "n", "p"), [(1, 1 << 20, 4), (8, 1 << 18, 2), (8, 1 << 17, 3), (2, 1 << 19, 16)])
def test_slots_that_ask_for_much_work_together_are_refused_before_any_is_tried(
    slots: int, n: int, p: int, place: Path, protected: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def derive(*_arguments: object, **_options: object) -> bytes:
        raise AssertionError("a key was derived")

    monkeypatch.setattr(hashlib, "scrypt", derive)
    asked = {f"slot {number}": Slot(n, 4, p, bytes(32), bytes(48)) for number in range(slots)}
    greedy = {name: dataclasses.replace(slot, r=8) for name, slot in asked.items()}
    (place / configuration.NAME).write_bytes(Configuration(protected.id, greedy, "00").encode())
    with pytest.raises(
        DamagedObject,
        match=r"is damaged: (its key slots ask for \d+ times the work of one slot|a key slot has invalid parameters)",
    ):
        open_repository(RepositoryLocation(str(place), passphrase="any"))


def test_as_many_slots_as_there_may_be_of_our_own_cost_can_be_tried(
    place: Path, protected: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    monkeypatch.setattr(hashlib, "scrypt", lambda *_arguments, **_options: tried.append(1) or bytes(32))
    ours = {f"slot {number}": Slot(1 << 17, 8, 1, bytes(32), bytes(48)) for number in range(key_slots.MAX_SLOTS)}
    (place / configuration.NAME).write_bytes(Configuration(protected.id, ours, "00").encode())
    with pytest.raises(PassphraseRefused):
        open_repository(RepositoryLocation(str(place), passphrase="any"))
    assert len(tried) == key_slots.MAX_SLOTS


def test_the_number_of_slots_is_limited(place: Path, protected: Repository) -> None:
    for number in range(key_slots.MAX_SLOTS - 1):
        asked(place, "old", f"passphrase {number}", f"slot{number}")
    with pytest.raises(Refused, match="it has 8, which is the maximum"):
        asked(place, "old", "one more", "more")
    assert asked(place, "old", "one more", "more", ("slot0",)).changed
    assert opens(place, "one more") and opens(place, "passphrase 6")


@pytest.mark.parametrize("given", [{"passphrase": "x"}, {"new": "x"}])
def test_a_plain_repository_cannot_become_an_encrypted_one(
    place: Path, repository: Repository, given: dict[str, str]
) -> None:
    with pytest.raises(PassphraseRefused, match="is not encrypted, and cannot be encrypted later"):
        asked(place, **given)  # type: ignore[arg-type]
    assert not asked(place, remove=("default",)).changed


def test_a_slot_cannot_be_added_without_opening_the_repository(place: Path, protected: Repository) -> None:
    """A slot of somebody's own master key, put there without the true one, is found out before anything is sealed for it."""
    theirs = configuration.create("theirs", "mine")
    mine = configuration.decode((place / "repository.json").read_bytes(), str(place))
    forged = Configuration(mine.id, {**theirs.slots, **mine.slots}, mine.code)
    (place / "repository.json").write_bytes(forged.encode())
    with pytest.raises(RepositoryError, match="changed without the master key"):
        asked(place, "old", "new")


def test_a_concurrent_change_by_another_writer_is_not_undone(
    place: Path, protected: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = keys._decide

    def overtaken(
        found: Configuration | None, passphrase: str | None, request: KeyRequest, location: str
    ) -> Configuration:
        monkeypatch.setattr(keys, "_decide", real)
        asked(place, "old", "theirs", "theirs")
        return real(found, passphrase, request, location)

    monkeypatch.setattr(keys, "_decide", overtaken)
    assert asked(place, "old", "new").changed
    assert opens(place, "theirs") and opens(place, "new") and not opens(place, "old")


@pytest.mark.parametrize(("request_", "after"), [("swap", False), ("swap", True), ("put", True)])
def test_a_change_concurrent_with_the_write_request_is_not_undone(
    place: Path, protected: Repository, request_: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right before or after it where the store has locks; right after it where it has none."""
    real = getattr(DirectoryStore, request_)
    if request_ == "put":  # a file system without locks
        monkeypatch.setattr(fcntl, "flock", _no_locks)

    def beside(store: DirectoryStore, name: str, *arguments: bytes, **options: bool) -> bool:
        monkeypatch.setattr(DirectoryStore, request_, real)
        done = real(store, name, *arguments, **options) if after else False
        asked(place, "old", "theirs", "theirs")
        return done or bool(real(store, name, *arguments, **options))

    monkeypatch.setattr(DirectoryStore, request_, beside)
    told = asked(place, "old", "mine", "mine")
    assert told.changed
    assert [opens(place, each) for each in ("old", "theirs", "mine")] == [True] * 3


def test_changes_that_never_end_are_named(place: Path, protected: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectoryStore, "swap", lambda *_arguments: False)
    with pytest.raises(RepositoryError, match="being changed by other runs.*Try again"):
        asked(place, "old", "new")
    assert opens(place, "old") and not opens(place, "new")


def test_eight_changes_at_once_all_count(place: Path, protected: Repository) -> None:
    with concurrent.futures.ThreadPoolExecutor(7) as pool:
        told = list(pool.map(lambda number: asked(place, "old", f"passphrase {number}", f"slot{number}"), range(7)))
    assert all(each.changed for each in told)
    assert [opens(place, f"passphrase {number}") for number in range(7)] == [True] * 7
    assert opens(place, "old")


def test_a_change_is_refused_after_a_concurrent_run_removed_the_slot_it_used(
    place: Path, protected: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(place, "old", "spare", "emergency")
    real = DirectoryStore.swap

    def overtaken(store: DirectoryStore, name: str, before: bytes, after: bytes) -> bool:
        monkeypatch.setattr(DirectoryStore, "swap", real)
        asked(place, "spare", remove=("default",))
        return real(store, name, before, after)

    monkeypatch.setattr(DirectoryStore, "swap", overtaken)
    with pytest.raises(PassphraseRefused):
        asked(place, "old", remove=("emergency",))
    assert opens(place, "spare") and not opens(place, "old")


def test_a_new_repository_opens_with_both_passphrases_where_they_are_for_different_slots(place: Path) -> None:
    predicted = asked(place, "daily", "for emergencies", "emergency", check=True)
    made = asked(place, "daily", "for emergencies", "emergency")
    assert set(made.after.slots) == set(predicted.after.slots) == {"default", "emergency"}
    assert opens(place, "daily") and opens(place, "for emergencies")
    assert not asked(place, "daily", "for emergencies", "emergency").changed


def test_two_creators_end_with_the_first_ones_repository(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, first = keys.configuration_in, []

    def overtaken(store: Store) -> Configuration | None:
        monkeypatch.setattr(keys, "configuration_in", real)
        found = real(store)
        first.append(asked(place, "old").after.id)
        return found

    monkeypatch.setattr(keys, "configuration_in", overtaken)
    second = asked(place, "old")
    assert (second.after.id, second.changed) == (first[0], False)


def test_the_repr_of_a_request_hides_its_passphrase() -> None:
    assert "secret" not in repr(KeyRequest("secret"))
