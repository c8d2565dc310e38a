"""Restore points: ids, manifests and their order."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import OTHER_UUID, UUID, created, point, point_id, record
from stores_for_tests import with_bit_flipped

from _cbt.errors import DamagedObject, RepositoryError
from _cbt.repository.format import envelope, manifests, names
from _cbt.repository.format.manifests import RestorePoint, StoredFile

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SHA256 = "0" * 64
TARGET = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,31}", fullmatch=True)
FILE = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,60}", fullmatch=True).filter(
    lambda name: name.lower() != "manifest.json"
)
DOMAIN = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))


def name_of(restore_point: RestorePoint) -> str:
    return names.manifest(restore_point.uuid, restore_point.id)


def ids(found: list[RestorePoint]) -> list[str]:
    return [each.id for each in found]


def test_an_id_is_utc_to_the_second_with_a_random_suffix_and_sorts_by_time() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    moment = datetime.datetime(2026, 11, 23, 2, 0, 5, tzinfo=zone)
    made = manifests.new_id(moment)
    assert re.fullmatch("20261122T203005Z-[0-9a-f]{8}", made)
    assert manifests.new_id(moment) != made
    assert manifests.new_id(moment + datetime.timedelta(seconds=1)) > made


@given(
    DOMAIN,
    TEXT,
    st.lists(TARGET, max_size=3, unique=True),
    st.sets(FILE, max_size=3),
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.booleans(),
)
def test_a_manifest_round_trips_with_any_names(
    domain: str, source: str, targets: list[str], given: set[str], tags: dict[str, str], flag: bool
) -> None:
    files = {name: StoredFile(f"{name}-2", 1 << 20, SHA256) for name in given}
    disks = tuple(
        record(
            target, source=source, image={"format": "qcow2", "cluster-size": 65536}, statistics={"new_bytes": 1 << 60}
        )
        for target in targets
    )
    made = dataclasses.replace(
        point(1, domain=domain, files=files, tags=tags, pinned=flag, autostart=not flag, checkpoint=source), disks=disks
    )
    assert manifests.decode(manifests.encode(made), name_of(made)) == made


def test_every_flipped_bit_of_a_manifest_is_damage() -> None:
    made = point(1, domain="büro-1", tags={"team": "日本"})
    data = manifests.encode(made)
    for bit in range(len(data) * 8):
        with pytest.raises(DamagedObject):
            manifests.decode(with_bit_flipped(data, bit), name_of(made))


def test_a_newer_manifest_is_refused_by_name() -> None:
    made = point(1)
    with pytest.raises(RepositoryError, match="manifest.json has format 2") as caught:
        manifests.decode(envelope.encode("manifest", 2, {"unknown": True}), name_of(made))
    assert not isinstance(caught.value, DamagedObject)


@pytest.mark.parametrize("other", [point_id(2), OTHER_UUID], ids=["another point", "another domain"])
def test_a_manifest_in_anothers_place_is_damage(other: str) -> None:
    made = point(1)
    elsewhere = name_of(made).replace(UUID if other == OTHER_UUID else made.id, other)
    with pytest.raises(DamagedObject, match="it is the manifest of"):
        manifests.decode(manifests.encode(made), elsewhere)


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(RestorePoint) if field.default is dataclasses.MISSING]
)
def test_a_manifest_that_lacks_a_field_is_damage(field: str) -> None:
    made = point(1)
    body = dataclasses.asdict(made)
    del body[field]
    with pytest.raises(DamagedObject):
        manifests.decode(envelope.encode("manifest", 1, body), name_of(made))


def test_points_are_ordered_by_time_in_any_order_of_listing() -> None:
    made = [point(number) for number in (1, 2, 3, 4)]
    for shuffled in itertools.permutations(made):
        assert manifests.ordered(shuffled) == made


def test_a_point_made_after_the_clock_was_set_back_stays_after_its_parent() -> None:
    first, second = point(10), point(20, parent=point_id(10))
    late = point(5, parent=second.id)
    later = point(6, parent=late.id)
    for shuffled in itertools.permutations([first, second, late, later]):
        assert ids(manifests.ordered(shuffled)) == ids([first, second, late, later])


def test_the_next_correct_time_counts_again_after_the_clock_was_set_back() -> None:
    first = point(20)
    back = point(5, parent=first.id)
    right = point(21, parent=back.id)
    for shuffled in itertools.permutations([first, back, right]):
        assert ids(manifests.ordered(shuffled)) == ids([first, back, right])


def test_a_point_made_from_an_older_one_than_the_latest_is_ordered_by_its_own_time() -> None:
    """Such as after a rollback: its parent is old, but it is the newest."""
    assert ids(manifests.ordered([point(3, parent=point_id(1)), point(2, parent=point_id(1)), point(1)])) == [
        point_id(1),
        point_id(2),
        point_id(3),
    ]


def test_a_parent_that_was_deleted_or_a_cycle_of_parents_does_not_hang_or_lose_points() -> None:
    made = [
        point(1, parent=point_id(9)),
        point(2, parent=point_id(3)),
        point(3, parent=point_id(2)),
        point(4, parent=point_id(4)),
    ]
    for shuffled in itertools.permutations(made):
        assert sorted(ids(manifests.ordered(shuffled))) == ids(made)


@given(st.lists(st.tuples(st.integers(0, 30), st.none() | st.integers(0, 11)), max_size=12), st.randoms())
def test_no_point_ever_precedes_its_parent_and_the_order_of_listing_does_not_matter(
    shape: list[tuple[int, int | None]], chance: random.Random
) -> None:
    """Parents are made before their children, at whatever time the clock showed."""
    made = []
    for number, (day, parent) in enumerate(shape):
        known = parent is not None and parent < number
        made.append(
            point(number, parent=point_id(parent) if known and parent is not None else None, created=created(day))
        )
    expected = manifests.ordered(made)
    chance.shuffle(made)
    assert manifests.ordered(made) == expected
    place = {each.id: index for index, each in enumerate(expected)}
    assert all(place[each.parent] < place[each.id] for each in made if each.parent)


def test_a_long_chain_is_ordered_without_recursion() -> None:
    made = [
        point(number, parent=point_id(number - 1) if number else None, created=f"{number:08d}")
        for number in range(1500)
    ]
    assert ids(manifests.ordered(list(reversed(made)))) == ids(made)


def test_a_disk_is_found_by_its_exact_target() -> None:
    made = point(1, (record("sdaa"), record("sda")))
    assert made.disk("sda") == made.disks[1]
    assert made.disk("sd") is None


@pytest.mark.parametrize("scope", ["repository", "domain", "none"])
def test_a_deduplication_scope_narrower_than_the_repository_is_recorded(scope: str) -> None:
    made = dataclasses.replace(point(1), dedup=scope)
    data = manifests.encode(made)
    assert (b"dedup" in data) == (scope != "repository")
    assert manifests.decode(data, names.manifest(made.uuid, made.id)) == made
