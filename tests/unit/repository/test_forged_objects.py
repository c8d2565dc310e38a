# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects that another host with access forges, of those by which sessions know of each other: they cost work or an error, and no restore point.

Each has any time: long past, so that its grace period seems over, or far ahead, so that it never ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from engine_history import EngineHistory
from histories import use_small_disks
from samples import UUID, point_id
from stepping import Actor, OneAfterAnother, SteppedStore

from _cbt.errors import RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.format import envelope, manifests, names
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import condemned, leases, publishing, removals
from _cbt.repository.sharing.leases import LAPSE

GRACE = 86400.0
SESSION, MARK = "f" * 16, "e" * 16


def _everything(history: EngineHistory) -> list[str]:
    """What can be announced."""
    return [
        name
        for folder in (names.PACKS, names.POINTS)
        for name in history.store.list(folder)
        if names.is_collectable(name)
    ]


def _lease(since: float) -> bytes:
    return envelope.encode(
        leases.KIND, leases.VERSION, {"host": "web1", "process": 1, "operation": "backup", "since": since}
    )


def _copy_of(history: EngineHistory, newest: bool) -> bytes:
    found = history.fresh().points_of(UUID).points
    return manifests.encode(found[-1 if newest else 0])


def _of_last(history: EngineHistory) -> str:
    return max(history.truth)


Forgery = Callable[[EngineHistory], dict[str, bytes]]

# By what it is: names of the objects with what is in them before it is sealed. What is no JSON cannot be read.
FORGERIES: dict[str, Forgery] = {
    "announcements of everything": lambda history: {names.announcement(name): b"" for name in _everything(history)},
    "a list of everything": lambda history: {
        names.doomed(SESSION, 0): envelope.encode(
            condemned.KIND, condemned.VERSION, {"names": [*_everything(history), names.CONFIGURATION]}
        )
    },
    "a list that cannot be read": lambda _history: {names.doomed(SESSION, 0): b"x"},
    "a lease that began at the first moment": lambda _history: {names.lease(SESSION): _lease(0.0)},
    "a lease that will begin": lambda _history: {names.lease(SESSION): _lease(9e9)},
    "a lease that cannot be read": lambda _history: {names.lease(SESSION): b"x"},
    "the leases of those at work": lambda history: {name: _lease(9e9) for name in history.store.list(names.LEASES)},
    "the leases of those at work, and announcements of everything": lambda history: {
        **FORGERIES["the leases of those at work"](history),
        **FORGERIES["announcements of everything"](history),
    },
    "a draft": lambda history: {names.draft(SESSION, UUID, _of_last(history), MARK): _copy_of(history, newest=True)},
    "a draft that cannot be read": lambda history: {names.draft(SESSION, UUID, _of_last(history), MARK): b"x"},
    "a removal of a point that exists": lambda history: {
        names.trash_entry(UUID, _of_last(history), MARK): _copy_of(history, newest=True)
    },
    "a removal that cannot be read": lambda history: {names.trash_entry(UUID, _of_last(history), MARK): b"x"},
    "a removal of a point that never was": lambda _history: {names.trash_entry(UUID, point_id(9), MARK): b"x"},
    "a record of removed points": lambda history: {
        names.removals(UUID, MARK): envelope.encode(removals.KIND, removals.VERSION, {"points": sorted(history.truth)})
    },
    "a count of no points": lambda _history: {names.RECORD: envelope.encode("collected", 1, {"points": 0})},
    "a count of many points": lambda _history: {names.RECORD: envelope.encode("collected", 1, {"points": 1000})},
}
TIMES = {"long past": 0.0, "far ahead": 4e9}


def forge(history: EngineHistory, what: str, when: str) -> set[str]:
    """Put the objects; their names."""
    forged = FORGERIES[what](history)
    for name, data in forged.items():
        history.repository.put_object(name, data)
        history.store.times[name] = TIMES[when]
    return set(forged)


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    """Three points, and a clock for all."""
    use_small_disks(monkeypatch, 6, cut=0)
    made = EngineHistory()
    monkeypatch.setattr(leases, "boot_clock", lambda: made.store.clock)
    for number in range(3):
        made.disk.write(number, number + 1)
        made.backup()
    return made


@contextlib.contextmanager
def may_fail(forged: set[str]) -> Iterator[None]:
    """It is done, or the error names what was forged, or asks for a confirmation."""
    try:
        yield
    except RepositoryError as error:
        assert any(name in str(error) for name in forged), error
    except Exception as error:
        assert "confirm_shrink" in str(error), error


def check(history: EngineHistory, expected: set[str]) -> None:
    """No point is lost, and all hold what they must."""
    assert {each.id for each in history.fresh().points_of(UUID).points} >= expected
    assert not history.wrong()


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("what", FORGERIES)
def test_no_point_is_lost_to_what_is_forged(what: str, when: str, history: EngineHistory) -> None:
    forged = forge(history, what, when)
    expected = set(history.truth)
    for number, request in enumerate(
        (RetentionRequest(), RetentionRequest(compact_below=99), RetentionRequest(grace=0.0)), 10
    ):
        with may_fail(forged):
            retention(history.fresh(), request)
        check(history, expected)
        history.disk.write(number % 6, number)
        with may_fail(forged):
            expected.add(history.backup().id)
        history.truth = {name: data for name, data in history.truth.items() if name in expected}
        check(history, expected)
        history.store.clock += GRACE + LAPSE + 60


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("what", FORGERIES)
@pytest.mark.parametrize("passed", [1.0, leases.STEADY + 60])
def test_objects_forged_during_a_backup_cost_no_pack_that_it_names(
    passed: float, what: str, when: str, history: EngineHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor", OneAfterAnother)
    plain, seen = history.fresh, history.store

    def work(actor: Actor) -> None:
        history.fresh = lambda: Repository(SteppedStore(seen, actor), "00" * 16, history.repository.keys)  # type: ignore[method-assign,arg-type]
        history.backup()

    before = set(history.truth)
    history.disk.write(0, 50)
    writer = Actor("backup", work)
    while not writer.pending.startswith("put drafts") and not writer.over:
        writer.step()
    history.fresh = plain  # type: ignore[method-assign]
    forged = forge(history, what, when)
    for _night in range(2):
        history.store.clock += passed
        with may_fail(forged):
            retention(history.fresh(), RetentionRequest(grace=300.0))
    while not writer.over:
        writer.step()
    if writer.error is not None:
        assert any(name in str(writer.error) for name in forged), writer.error
        history.truth = {name: history.truth[name] for name in before}
    else:
        before = set(history.truth)
    check(history, before)


def test_what_is_announced_by_others_is_pardoned_and_stored_once_more_at_the_most(history: EngineHistory) -> None:
    forged = forge(history, "announcements of everything", "long past")
    retention(history.fresh(), RetentionRequest(grace=0.0))
    assert not forged & set(history.store.objects)
    forge(history, "announcements of everything", "long past")
    before = set(history.store.list(names.PACKS))
    history.disk.write(0, 60)
    history.backup()
    assert before <= set(history.store.list(names.PACKS))
    history.disk.write(0, 61)
    history.collect()
    size = sum(map(history.store.size, history.store.list(names.PACKS)))
    history.backup()
    assert sum(map(history.store.size, history.store.list(names.PACKS))) - size < 2 * BLOCK_SIZE
    check(history, set(history.truth))


def test_a_forged_removal_can_be_taken_back_and_rules_still_decide(history: EngineHistory) -> None:
    last = _of_last(history)
    forge(history, "a removal of a point that exists", "far ahead")
    assert not retention(history.fresh(), RetentionRequest(undelete=(last,))).undeleted
    retention(history.fresh(), RetentionRequest(rules=Rules(last=3)))
    check(history, set(history.truth))
    assert publishing.whole_point(history.fresh(), UUID, last) is not None
