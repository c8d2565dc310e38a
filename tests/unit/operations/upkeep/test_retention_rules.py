"""Which restore points the rules keep."""

from __future__ import annotations

import datetime
import zoneinfo
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import point

from _cbt.errors import Refused
from _cbt.operations.upkeep.retention_rules import Duration, Rules, decide, parse_duration
from _cbt.repository.format import manifests
from _cbt.repository.format.manifests import RestorePoint

UTC = datetime.UTC
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NOW = datetime.datetime(2026, 7, 1, tzinfo=UTC)
COUNTING = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def taken(number: int, moment: str, **fields: Any) -> RestorePoint:
    """A point of this moment; its id begins with its number."""
    return point(1, id=f"{number:04d}", created=f"{moment}+00:00", **fields)


def series(*moments: str) -> list[RestorePoint]:
    return [taken(number, moment) for number, moment in enumerate(moments)]


def kept(found: list[RestorePoint], rules: Rules, now: datetime.datetime = NOW) -> dict[int, tuple[str, ...]]:
    """Numbers of the points that stay, with the rules that keep them."""
    return {int(verdict.point.id): verdict.rules for verdict in decide(found, rules, now) if verdict.kept}


# Two a day on four days, the second of them over the turn of a month, all of one year.
DAYS = series(
    "2026-04-29T01:00:00", "2026-04-29T13:00:00", "2026-04-30T01:00:00", "2026-04-30T13:00:00",
    "2026-05-01T01:00:00", "2026-05-01T13:00:00", "2026-05-02T01:00:00", "2026-05-02T13:00:00",
)  # fmt: skip

TABLE: dict[str, tuple[Rules, dict[int, tuple[str, ...]]]] = {
    "no rule": (Rules(), {}),
    "last": (Rules(last=2), {6: ("last",), 7: ("last",)}),
    "last without limit": (Rules(last=-1), {number: ("last",) for number in range(8)}),
    "daily takes the newest of each day": (Rules(daily=2), {5: ("daily",), 7: ("daily",)}),
    "the oldest stays while counts are left": (
        Rules(daily=9),
        {0: ("daily",), 1: ("daily",), 3: ("daily",), 5: ("daily",), 7: ("daily",)},
    ),
    "the oldest goes when the counts are used up": (
        Rules(daily=4),
        {1: ("daily",), 3: ("daily",), 5: ("daily",), 7: ("daily",)},
    ),
    "monthly and the oldest": (Rules(monthly=3), {0: ("monthly",), 3: ("monthly",), 7: ("monthly",)}),
    "each rule counts for itself": (Rules(last=1, daily=1, yearly=1), {7: ("last", "daily", "yearly")}),
    "hours": (Rules(hourly=3), {5: ("hourly",), 6: ("hourly",), 7: ("hourly",)}),
    "weeks, of which there is one, and the oldest": (Rules(weekly=2), {0: ("weekly",), 7: ("weekly",)}),
    "within, from the newest and not from now": (Rules(within=Duration(hours=24)), {6: ("within",), 7: ("within",)}),
}


@pytest.mark.parametrize(("rules", "expected"), TABLE.values(), ids=TABLE.keys())
def test_points_are_kept_as_restic_does(rules: Rules, expected: dict[int, tuple[str, ...]]) -> None:
    assert kept(DAYS, rules) == expected


def test_pinned_points_stay_and_count_for_no_rule() -> None:
    found = [
        taken(0, "2026-01-01T00:00:00"),
        taken(1, "2026-01-02T00:00:00"),
        taken(2, "2026-01-03T00:00:00", pinned=True),
    ]
    assert kept(found, Rules(last=1)) == {1: ("last",), 2: ("pinned",)}


def test_tags_keep_by_name_and_by_name_and_value() -> None:
    found = [
        taken(0, "2026-01-01T00:00:00", tags={"change": "CHG-1"}),
        taken(1, "2026-01-02T00:00:00", tags={"change": "CHG-2"}),
        taken(2, "2026-01-03T00:00:00", tags={"hold": "yes"}),
        taken(3, "2026-01-04T00:00:00"),
    ]
    assert kept(found, Rules(tags=("change=CHG-2", "hold"))) == {1: ("tags",), 2: ("tags",)}


def test_a_point_dated_in_the_future_stays_and_pushes_no_other_out() -> None:
    found = [*series("2026-01-01T00:00:00", "2026-01-02T00:00:00"), taken(2, "2031-01-01T00:00:00")]
    rules = Rules(last=1, within=Duration(days=1))
    assert kept(found, rules) == {1: ("last", "within"), 2: ("future",)}


def test_a_point_taken_while_the_clock_was_set_back_counts_as_the_newest_it_is() -> None:
    found = [taken(0, "2026-01-01T00:00:00"), taken(1, "2026-01-02T00:00:00"), taken(2, "1970-01-01T00:00:00")]
    assert kept(found, Rules(last=1)) == {2: ("last",)}
    assert kept(found, Rules(daily=1)) == {2: ("daily",)}


def test_points_taken_after_one_of_a_clock_that_ran_ahead_count_by_their_own_time() -> None:
    """Once that time has come, too: they are none of that day, and not to be taken for one."""
    moments = [
        "2026-04-01T00:00:00",
        "2026-06-20T00:00:00",
        *[f"2026-{month:02d}-10T00:00:00" for month in (4, 5, 6)],
        "2026-06-29T00:00:00",
    ]
    found = manifests.ordered(
        [taken(number, moment, parent=f"{number - 1:04d}") for number, moment in enumerate(moments)]
    )
    assert [int(each.id) for each in found] == list(range(6)), "each was made from the one before"
    assert kept(found, Rules(monthly=12)) == {0: ("monthly",), 2: ("monthly",), 3: ("monthly",), 5: ("monthly",)}
    assert kept(found, Rules(daily=4)) == {number: ("daily",) for number in (2, 3, 4, 5)}


def test_a_day_begins_where_the_time_zone_says() -> None:
    found = series("2026-01-01T22:30:00", "2026-01-01T23:30:00")  # the second is of the next day in Berlin
    assert kept(found, Rules(daily=2)) == {0: ("daily",), 1: ("daily",)}  # the older one as the oldest
    three = [*found, *[taken(2, "2026-01-02T10:00:00")]]
    assert kept(three, Rules(daily=2)) == {1: ("daily",), 2: ("daily",)}
    assert kept(three, Rules(daily=2, zone=BERLIN)) == {0: ("daily",), 2: ("daily",)}


def test_the_hour_that_a_clock_change_repeats_counts_twice() -> None:
    found = series("2025-10-25T23:30:00", "2025-10-26T00:30:00", "2025-10-26T01:30:00")  # 1:30, 2:30 and 2:30 again
    assert kept(found, Rules(hourly=2, zone=BERLIN)) == {1: ("hourly",), 2: ("hourly",)}


def test_a_week_that_spans_two_years_counts_once() -> None:
    found = series("2025-12-21T12:00:00", "2025-12-31T12:00:00", "2026-01-01T12:00:00")
    assert kept(found, Rules(weekly=1)) == {2: ("weekly",)}
    assert 1 not in kept(found, Rules(weekly=2))


DURATIONS = {"30d": Duration(days=30), "1y6m": Duration(months=18), " 2y5m7d3h ": Duration(29, 7, 3), "0h": Duration()}


@pytest.mark.parametrize(("text", "meaning"), DURATIONS.items())
def test_durations_are_read(text: str, meaning: Duration) -> None:
    assert parse_duration(text) == meaning


@pytest.mark.parametrize("text", ["", "7", "d", "3h2d", "1.5d", "-1d", "1w", "1d 2h"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="Cannot read the duration"):
        parse_duration(text)


def test_a_month_before_its_last_day_is_the_last_day_of_the_month_before() -> None:
    assert Duration(months=1).before(datetime.datetime(2026, 3, 31, 12, tzinfo=UTC)) == datetime.datetime(
        2026, 2, 28, 12, tzinfo=UTC
    )
    assert Duration(months=12).before(datetime.datetime(2024, 2, 29, tzinfo=UTC)) == datetime.datetime(
        2023, 2, 28, tzinfo=UTC
    )
    assert Duration(months=99999).before(NOW) == datetime.datetime.min.replace(tzinfo=UTC)
    assert Duration(days=999999).before(NOW) == datetime.datetime.min.replace(tzinfo=UTC)


MOMENTS = st.datetimes(datetime.datetime(2023, 1, 1), datetime.datetime(2026, 8, 1))
ZONES = st.sampled_from([UTC, BERLIN, zoneinfo.ZoneInfo("Pacific/Apia"), zoneinfo.ZoneInfo("America/St_Johns")])
COUNTS = st.sampled_from([-1, 0, 0, 1, 2, 3, 7])
WITHIN = st.none() | st.builds(Duration, st.integers(0, 30), st.integers(0, 40), st.integers(0, 50))
RULES = st.builds(
    Rules, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, WITHIN, st.sampled_from([(), ("hold",)]), ZONES
)


@st.composite
def histories(draw: st.DrawFn) -> list[RestorePoint]:
    """Points in the order of the repository; some made from another, dated in the future, pinned or tagged."""
    found: list[RestorePoint] = []
    for number in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from([None, *[each.id for each in found]]))
        moment = draw(MOMENTS).isoformat(timespec="microseconds")
        tags = draw(st.sampled_from([{}, {}, {"hold": "yes"}]))
        found.append(taken(number, moment, parent=parent, pinned=draw(st.integers(0, 9)) == 0, tags=tags))
    return manifests.ordered(found)


def steady() -> st.SearchStrategy[list[RestorePoint]]:
    """Histories of a clock that was never set back: only then is a point's place known without those before it."""
    return histories().map(
        lambda found: manifests.ordered([point(1, **{**vars(each), "parent": None}) for each in found])
    )


@given(steady(), RULES)
def test_applying_the_rules_again_removes_nothing_more(found: list[RestorePoint], rules: Rules) -> None:
    first = [verdict.point for verdict in decide(found, rules, NOW) if verdict.kept]
    assert [verdict.point for verdict in decide(first, rules, NOW) if verdict.kept] == first


@given(histories(), RULES, st.sampled_from(COUNTING))
def test_a_bigger_count_never_keeps_less(found: list[RestorePoint], rules: Rules, name: str) -> None:
    count = getattr(rules, name)
    bigger = Rules(**{**vars(rules), name: -1 if count == -1 else count + 1})
    assert set(kept(found, rules)) <= set(kept(found, bigger))


@given(histories(), RULES)
def test_a_point_is_kept_if_and_only_if_a_single_rule_keeps_it(found: list[RestorePoint], rules: Rules) -> None:
    alone = [Rules(**{name: getattr(rules, name)}, zone=rules.zone) for name in COUNTING]
    alone += [Rules(within=rules.within, zone=rules.zone), Rules(tags=rules.tags)]
    assert set(kept(found, rules)) == {number for each in alone for number in kept(found, each)}


@given(histories(), RULES, st.integers(1, 5))
def test_the_newest_point_is_kept_under_every_counting_rule(
    found: list[RestorePoint], rules: Rules, count: int
) -> None:
    counted = [each for each in found if not each.pinned and datetime.datetime.fromisoformat(each.created) <= NOW]
    verdicts = kept(found, Rules(**{**vars(rules), "last": count}))
    assert {int(each.id) for each in counted[-count:]} <= set(verdicts)


@given(steady(), RULES)
def test_pinned_points_and_those_of_the_future_change_nothing_for_the_others(
    found: list[RestorePoint], rules: Rules
) -> None:
    counted = [each for each in found if not each.pinned and datetime.datetime.fromisoformat(each.created) <= NOW]
    expected = kept(counted, rules)
    verdicts = kept(found, rules)
    assert {
        number: rules for number, rules in verdicts.items() if number in {int(each.id) for each in counted}
    } == expected
    assert len(verdicts) == len(expected) + len(found) - len(counted)
