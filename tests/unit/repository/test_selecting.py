"""Choosing a restore point by domain, id and time."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from samples import OTHER_UUID, UUID, point, point_id
from stores_for_tests import MemoryStore

from _cbt.errors import Refused, RepositoryError
from _cbt.repository.format import manifests, names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import (
    ALL,
    LATEST,
    PointFilter,
    PointSelection,
    of_domain,
    parse_time,
    select_point,
    select_points,
)


def at(*numbers: int, hours: int = 0) -> datetime.datetime:
    year, month, day, *rest = numbers
    return datetime.datetime(year, month, day, *rest, tzinfo=datetime.timezone(datetime.timedelta(hours=hours)))  # type: ignore[misc,arg-type]


POINTS = [point(1), point(2), point(3), point(9, uuid=OTHER_UUID, domain="db1")]

TIMES = {
    "2026-11-22": at(2026, 11, 22, 23, 59, 59, 999999),
    " 2026-11-22 ": at(2026, 11, 22, 23, 59, 59, 999999),
    "9999-12-31": at(9999, 12, 31, 23, 59, 59, 999999),
    "2026-11-22 14:30": at(2026, 11, 22, 14, 30),
    "2026-11-22T14:30": at(2026, 11, 22, 14, 30),
    "2026-11-22T14:30:05": at(2026, 11, 22, 14, 30, 5),
    "2026-11-22T14:30:05.250000": at(2026, 11, 22, 14, 30, 5, 250000),
    "2026-11-22T14:30:00+01:00": at(2026, 11, 22, 13, 30),
    "2026-11-22T00:30-05:00": at(2026, 11, 22, 5, 30),
    "2026-11-22T14:30:00Z": at(2026, 11, 22, 14, 30),
}


@pytest.mark.parametrize(("text", "moment"), TIMES.items(), ids=TIMES.keys())
def test_a_time_is_read_in_its_zone_and_a_date_alone_means_the_end_of_that_day(
    text: str, moment: datetime.datetime
) -> None:
    assert parse_time(text) == moment
    assert parse_time(text).tzinfo is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "22.11.2026",
        "2026-13-01",
        "2026-11-22 25:00",
        "2026-11-22T",
        "1763800000",
        "2026-11-22T14:30 CET",
    ],
)
def test_an_invalid_date_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Refused, match="Cannot read the date .* Write it like 2026-11-22 14:30"):
        parse_time(text)


@pytest.mark.parametrize(
    "text", ["2026-11-22Z", "2026-11-22+01:00", "2026-11-22-05:00", "20261122", "2026-W47", "2026-W47-7"]
)
def test_a_date_in_another_form_is_refused_or_the_end_of_that_day_and_never_its_beginning(text: str) -> None:
    """Python reads some of these as a time of day, and differently from version to version."""
    try:
        moment = parse_time(text)
    except Refused:
        return
    assert (moment.hour, moment.minute, moment.second) == (23, 59, 59)


def test_the_latest_point_of_the_domain_is_chosen_by_default() -> None:
    assert select_point(POINTS, "web1") == POINTS[2]
    assert select_point(POINTS, "db1") == POINTS[3]


def test_a_point_is_chosen_by_its_id() -> None:
    assert select_point(POINTS, "web1", point_id(1)) == POINTS[0]


@pytest.mark.parametrize("wanted", ["20260101T120000Z", "newest", "", point_id(4)])
def test_an_unknown_id_is_refused_with_the_available_ones(wanted: str) -> None:
    with pytest.raises(Refused) as caught:
        select_point(POINTS, "web1", wanted)
    assert (
        str(caught.value)
        == f"There is no restore point {wanted} of web1; the latest is {point_id(3)}, the oldest {point_id(1)}."
    )


def test_the_point_of_another_domain_is_not_chosen_by_its_id() -> None:
    with pytest.raises(Refused):
        select_point(POINTS, "web1", point_id(9))


# All points are of 12:00 UTC.
UNTIL = {
    "the very moment": ("2026-01-02T12:00:00Z", 1),
    "just before": ("2026-01-02T11:59:59Z", 0),
    "within the day": ("2026-01-02", 1),
    "without zone is UTC": ("2026-01-02 12:00", 1),
    "same moment further east": ("2026-01-02T14:00:00+02:00", 1),
    "earlier, though its clock shows more": ("2026-01-02T13:59:00+02:00", 0),
    "same moment further west": ("2026-01-02T07:00-05:00", 1),
    "long after": ("2030-01-01", 2),
}


@pytest.mark.parametrize(("until", "index"), UNTIL.values(), ids=UNTIL.keys())
def test_until_takes_the_latest_point_not_after_it(until: str, index: int) -> None:
    assert select_point(POINTS, "web1", until=until) == POINTS[index]


def test_until_before_all_points_is_refused_with_the_oldest() -> None:
    with pytest.raises(Refused) as caught:
        select_point(POINTS, "web1", until="2025-12-31")
    assert str(caught.value) == f"There is no restore point of web1 until 2025-12-31; the oldest is {point_id(1)}."


def test_a_domain_is_found_by_name_and_by_uuid() -> None:
    assert of_domain(POINTS, "web1") == of_domain(POINTS, UUID) == POINTS[:3]


def test_a_name_shared_by_two_machines_is_refused_and_the_uuid_is_not() -> None:
    shared = [*POINTS, point(5, uuid=OTHER_UUID)]
    with pytest.raises(Refused) as caught:
        of_domain(shared, "web1")
    assert str(caught.value) == (
        f"The repository holds restore points of 2 machines called web1: {UUID} (last point {point_id(3)}); {OTHER_UUID} (last point {point_id(5)})."
        " Give the UUID instead of the name."
    )
    assert of_domain(shared, UUID) == POINTS[:3]


@pytest.mark.parametrize("domain", ["web", "web11", "WEB1", ""])
def test_an_unknown_domain_is_refused_with_the_available_ones(domain: str) -> None:
    with pytest.raises(Refused) as caught:
        select_point(POINTS, domain)
    assert str(caught.value) == f"The repository holds no restore point of {domain}; it holds points of db1, web1."


def test_an_empty_repository_says_so() -> None:
    with pytest.raises(Refused, match="it holds points of no domain"):
        select_point([], "web1")


def test_more_restore_points_than_memory_is_there_for_do_not_keep_a_machine_from_being_restored_by_its_uuid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = Repository(MemoryStore(), "ab" * 16)
    fleet = [point(number, uuid=f"{number:08x}{OTHER_UUID[8:]}", domain=f"db{number}") for number in range(4, 24)]
    for each in [*POINTS[:3], *fleet]:
        repository.put_object(names.manifest(each.uuid, each.id), manifests.encode(each))
    assert list(repository.points_with(UUID)) == POINTS[:3]
    everything = {each.key for each in (*POINTS[:3], *fleet)}
    assert {each.key for each in repository.points_with("web1")} == everything
    unknown = f"{'f' * 8}{UUID[8:]}"  # what looks like a UUID may be a name
    assert {each.key for each in repository.points_with(unknown)} == everything
    monkeypatch.setattr(manifests, "MOST_MANIFESTS", 60_000)
    with pytest.raises(
        RepositoryError,
        match="more than 0 MiB of memory. Restore a machine by its UUID, which reads no other manifests. For everything else, use a host",
    ):
        repository.points_with("web1")
    assert select_point(repository.points_with(UUID), UUID) == POINTS[2]


def test_a_host_with_much_memory_reads_more_restore_points() -> None:
    assert manifests.most_manifests(8 << 30) == manifests.most_manifests(20 << 30) == 320 << 20
    assert manifests.most_manifests(256 << 30) == 4 << 30


SELECTIONS = {
    ("all",): (ALL, [1, 2, 3, 9]),
    ("latest",): (LATEST, [3, 9]),
    (point_id(2),): (PointSelection("chosen", (point_id(2),)), [2]),
    (point_id(3), point_id(9)): (PointSelection("chosen", (point_id(3), point_id(9))), [3, 9]),
    (): (PointSelection("chosen"), []),
}


@pytest.mark.parametrize("words", SELECTIONS, ids=" ".join)
def test_a_selection_is_one_keyword_or_ids(words: tuple[str, ...]) -> None:
    selection, numbers = SELECTIONS[words]
    assert PointSelection.parse(words) == selection
    assert {each.id for each in select_points(POINTS, None, selection)} == {point_id(number) for number in numbers}


@pytest.mark.parametrize("words", [("latest", "all"), ("all", "latest"), (point_id(1), "latest"), ("all", "all")])
def test_a_keyword_combined_with_other_values_is_refused(words: tuple[str, ...]) -> None:
    keyword = next(each for each in words if each in ("all", "latest"))
    with pytest.raises(Refused) as caught:
        PointSelection.parse(words)
    expected = f"{keyword} cannot be combined with others in {', '.join(words)}. Give all, latest, or ids."
    assert str(caught.value) == expected


def test_a_date_alone_may_mean_the_start_of_that_day() -> None:
    assert parse_time("2026-11-22", end=False) == at(2026, 11, 22)
    assert parse_time("2026-11-22 14:30", end=False) == at(2026, 11, 22, 14, 30)


@pytest.mark.parametrize(
    ("conditions", "fitting"),
    [
        ({}, [1, 2, 3]),
        ({"tags": ("why",)}, [1, 2]),
        ({"tags": ("why=test", "none")}, [1]),
        ({"tags": ("test",)}, []),
        ({"host": "kvm2"}, [2]),
        ({"host": "kvm"}, []),
        ({"pinned": True}, [2]),
        ({"pinned": False}, [1, 3]),
        ({"since": "2026-01-02"}, [2, 3]),
        ({"until": "2026-01-02"}, [1, 2]),
        ({"since": "2026-01-02 12:00", "until": "2026-01-02T13:00:00+01:00"}, [2]),
        ({"since": "2026-01-02 12:01", "until": "2026-01-02"}, []),
        ({"tags": ("why",), "pinned": False}, [1]),
    ],
)
def test_points_are_listed_by_conditions_that_must_all_hold(conditions: dict[str, Any], fitting: list[int]) -> None:
    def taken(number: int, **fields: Any) -> RestorePoint:
        return point(number, created=f"2026-01-0{number}T12:00:00+00:00", **{"host": "kvm1", **fields})

    found = [
        taken(1, tags={"why": "test"}),
        taken(2, tags={"why": "change"}, host="kvm2", pinned=True),
        taken(3),
    ]
    assert [number for number, each in enumerate(found, 1) if PointFilter(**conditions).fits(each)] == fitting


@pytest.mark.parametrize("key", ["since", "until"])
def test_a_condition_that_is_not_a_time_is_refused(key: str) -> None:
    with pytest.raises(Refused, match="Cannot read the date yesterday"):
        PointFilter(**{key: "yesterday"}).fits(point(1))
