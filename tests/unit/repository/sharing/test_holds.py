# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds: what retention says of them, who may end them, and what one that cannot be read does. test_holds_beside_others.py has what happens at once."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import os
from pathlib import Path

import pytest
from engine_history import EngineHistory
from histories import KEYS
from samples import OTHER_UUID, UUID, point_id
from stores_for_tests import MemoryStore, failing

from _cbt.control import Control
from _cbt.errors import DamagedObject, Held, ObjectLocked, ReadOnly, Refused, RepositoryError
from _cbt.operations.upkeep import compaction
from _cbt.operations.upkeep.retention import RetentionRequest, RetentionResult, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.format import envelope, manifests, names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import holding, holds, leases, trash
from _cbt.repository.sharing.collector import Collector
from _cbt.repository.sharing.holds import Hold
from _cbt.repository.stores.directory import DirectoryStore

NOW = datetime.datetime(2026, 11, 22, 11, 30, 5, tzinfo=datetime.UTC)
SINCE = "2026-11-22T11:30:05+00:00"
NIGHT = RetentionRequest(Rules(last=1), grace=0.0, confirm_shrink=True)


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    """Three points, of which each has a block of its own; the host is called kvm1."""
    monkeypatch.setattr(holding.socket, "gethostname", lambda: "kvm1")
    made = EngineHistory(KEYS[request.param])
    made.store.clock = NOW.timestamp()
    for number in range(3):
        made.disk.write(number, number + 1)
        made.backup()
    made.store.clock += 10
    return made


def oldest(history: EngineHistory) -> RestorePoint:
    return history.fresh().points_of().points[0]


def held(history: EngineHistory, purpose: str = "export") -> Hold:
    history.store.clock = NOW.timestamp()
    made = holding.hold(history.fresh(), oldest(history), purpose)
    history.store.clock += leases.LAPSE + leases.ASTRAY + 10
    return made


def night(history: EngineHistory, request: RetentionRequest = NIGHT) -> RetentionResult:
    """Retention, which check mode predicts, long after every session."""
    history.store.clock += 2 * leases.LAPSE + leases.ASTRAY
    told = retention(history.fresh(), request, check_only=True)
    result = retention(history.fresh(), request)
    assert [(verdict.point.key, verdict.rules) for verdict in told.verdicts] == [
        (verdict.point.key, verdict.rules) for verdict in result.verdicts
    ]
    return result


def test_a_held_point_survives_retention_which_says_why_until_it_is_released(history: EngineHistory) -> None:
    hold = held(history)
    result = night(history)
    newest = history.fresh().points_of().points[-1]
    assert [(verdict.point.id, verdict.rules) for verdict in result.kept] == [
        (hold.key[1], (f"held by export on kvm1 since {SINCE}",)),
        (newest.id, ("last",)),
    ]
    assert len(result.removed) == 1 and not history.wrong()
    holds.release(history.fresh(), hold.id)
    assert [each.key for each in night(history).removed] == [hold.key]
    night(history)
    assert {name for name in history.store.objects if name.startswith(("packs/", "points/"))} == history.needed()


def test_a_rule_that_would_remove_a_held_point_is_also_named(history: EngineHistory) -> None:
    held(history)
    (first, *_others) = night(history, dataclasses.replace(NIGHT, rules=Rules(last=-1))).verdicts
    assert first.rules == ("last", f"held by export on kvm1 since {SINCE}")


def test_a_hold_is_not_a_retention_rule(history: EngineHistory) -> None:
    held(history)
    with pytest.raises(Refused, match="The rules would keep no restore point of web1"):
        retention(history.fresh(), RetentionRequest(Rules()))


def test_every_hold_counts_by_itself(history: EngineHistory) -> None:
    first, second = held(history), held(history, "instant recovery")
    assert [(each.id, each.purpose) for each in holds.listed(history.fresh())] == sorted(
        [(first.id, "export"), (second.id, "instant recovery")]
    )
    holds.release(history.fresh(), first.id)
    assert (f"held by instant recovery on kvm1 since {SINCE}",) in [verdict.rules for verdict in night(history).kept]


def test_a_hold_round_trips_as_it_was_given(history: EngineHistory) -> None:
    hold = held(history)
    (listed,) = holds.listed(history.fresh())
    assert listed == hold == Hold(hold.id, hold.key, "kvm1", "export", NOW.timestamp(), oldest(history))
    assert holds.of(history.fresh(), hold.key) == [hold] and holds.of(history.fresh(), (OTHER_UUID, hold.key[1])) == []


def test_a_release_is_idempotent_and_ends_one_hold(history: EngineHistory) -> None:
    first, second = held(history), held(history)
    for _time in range(2):
        holds.release(history.fresh(), first.id)
        assert [each.id for each in holds.listed(history.fresh())] == [second.id]


def test_a_locked_hold_lasts_until_it_is_released_after_that(history: EngineHistory) -> None:
    hold = held(history)
    history.store.locks[hold.name] = history.store.clock + 3600
    with pytest.raises(ObjectLocked):
        holds.release(history.fresh(), hold.id)
    assert [each.id for each in holds.listed(history.fresh())] == [hold.id]
    history.store.clock += 3601
    holds.release(history.fresh(), hold.id)
    assert holds.listed(history.fresh()) == []


def test_a_held_point_is_not_removed_by_anyone_and_the_error_says_what_to_do(history: EngineHistory) -> None:
    hold = held(history)
    before = dict(history.store.objects)
    told = rf"cannot be removed: it is held by export on kvm1 since {SINCE[:10]}.*\(hold {hold.id}\)\. End what uses it.*any host\. Delete {hold.name}"
    with pytest.raises(Held, match=told) as refused:
        trash.remove(history.fresh(), oldest(history))
    assert refused.value.reasons == (hold.reason,)
    assert {*history.store.objects} == {*before}, "no entry of the trash is left"


def test_a_message_about_thousands_of_holds_names_some_and_counts_the_rest(history: EngineHistory) -> None:
    first, point = held(history, "x" * 300), oldest(history)
    whole = history.store.objects[first.name]
    for number in range(2000):
        history.store.objects[names.hold(*point.key, f"{number:016x}")] = whole
    with pytest.raises(Held, match="held by 1993 more holds") as caught:
        trash.remove(history.fresh(), point)
    assert len(str(caught.value)) < 4096 and len(caught.value.reasons) == 9
    assert list(history.store.list("trash")) == []
    verdict = next(each for each in night(history).verdicts if each.point.key == point.key)
    assert verdict.rules[-1] == "held by 1993 more holds" and len(verdict.rules) == 9


def test_an_incomplete_point_cannot_be_held(history: EngineHistory) -> None:
    point = oldest(history)
    (ref,) = history.fresh().read_packs(point, point.disks[0])
    del history.store.objects[ref.name]
    with pytest.raises(
        DamagedObject,
        match=f"Restore point {point.id} of web1 cannot be held: {ref.name} it needs is missing, damaged or about",
    ):
        holding.hold(history.fresh(), point, "export")
    assert list(history.store.list(names.HOLDS)) == []


def test_a_point_that_does_not_exist_is_not_held(history: EngineHistory) -> None:
    elsewhere = dataclasses.replace(oldest(history), uuid=OTHER_UUID)
    with pytest.raises(Refused, match=f"Restore point {elsewhere.id} of web1 cannot be held: it was removed"):
        holding.hold(history.fresh(), elsewhere, "export")
    assert list(history.store.list(names.HOLDS)) == []


@pytest.mark.parametrize("purpose", ["a\nb", "\x1b[2J", "x" * 1000, ""])
def test_a_purpose_is_a_single_line(history: EngineHistory, purpose: str) -> None:
    hold = held(history, purpose)
    assert hold.purpose.isprintable() and 0 < len(hold.purpose) <= holds.LONGEST
    assert holds.listed(history.fresh()) == [hold]


def test_packs_that_a_held_point_needs_are_not_emptied(history: EngineHistory) -> None:
    for block in (20, 21):
        history.disk.write(block, block)
    history.backup()
    history.disk.write(21, 99)
    last = history.backup()
    night(history)
    candidates = compaction.Candidates(100, history.fresh().points_of().points)
    assert compaction.predict(history.fresh(), candidates, Control()).packs, "it names half of a pack"
    hold = holding.hold(history.fresh(), last, "export")
    result = night(history, dataclasses.replace(NIGHT, compact_below=100))
    assert result.compacted == compaction.Compacted() and oldest(history) == last
    holds.release(history.fresh(), hold.id)
    assert night(history, dataclasses.replace(NIGHT, compact_below=100)).compacted != compaction.Compacted()
    assert not history.wrong()


def test_a_removed_point_that_is_held_can_be_brought_back_as_it_was(history: EngineHistory) -> None:
    """As one whose removal was killed when it met the hold; its blocks were moved between the hold and the removal."""
    hold, repository = held(history), history.fresh()
    point = oldest(history)
    extents = repository.read_map(point, "vda")
    name = names.map_file("vda", "0123abcd")
    files = repository.put_files(point.folder, {name: extents.encode()})
    moved = dataclasses.replace(point, disks=(dataclasses.replace(point.disks[0], map=files[name]),))
    repository.put_object(names.trash_entry(*point.key, "0" * 16), manifests.encode(moved))
    repository.store.delete(names.manifest(*point.key))
    night(history)
    assert moved.object_name(files[name]) in history.store.objects
    retention(history.fresh(), RetentionRequest(undelete=(point.id,), grace=0.0))
    assert oldest(history) == moved and not history.wrong()
    assert holds.listed(history.fresh()) == [hold]


# A hold that cannot be read.


def damaged(history: EngineHistory, hold: Hold, what: str) -> None:
    keys, whole = history.fresh().keys, history.store.objects[hold.name]
    body = envelope.decode(holds.KIND, 1, keys.unseal(hold.name, whole), hold.name)
    made = {
        "cut off": lambda: whole[:40],
        "empty": lambda: b"",
        "a manifest of another point": lambda: keys.seal(
            hold.name, _with(body, manifest=body["manifest"].replace(UUID, OTHER_UUID))
        ),
        "a purpose of two lines": lambda: keys.seal(hold.name, _with(body, purpose="a\nb")),
        "no host": lambda: keys.seal(hold.name, _with(body, host="")),
        "a time that is none": lambda: keys.seal(hold.name, _with(body, since=-1)),
    }
    history.store.objects[hold.name] = made[what]()


def _with(body: dict[str, object], **changed: object) -> bytes:
    return envelope.encode(holds.KIND, 1, {**body, **changed})


@pytest.mark.parametrize(
    "what",
    ["cut off", "empty", "a manifest of another point", "a purpose of two lines", "no host", "a time that is none"],
)
def test_a_damaged_hold_keeps_its_point_and_frees_nothing(history: EngineHistory, what: str) -> None:
    hold = held(history)
    damaged(history, hold, what)
    packs = set(history.store.list("packs"))
    result = night(history)
    assert (f"held by {hold.name}, which cannot be read",) in [verdict.rules for verdict in result.kept]
    assert result.collected is None and set(history.store.list("packs")) == packs
    assert list(result.damaged) == [hold.name]
    assert result.damaged[hold.name].endswith(
        f"Delete {hold.name} from the repository if nothing uses the restore point any more."
    )
    with pytest.raises(
        RepositoryError,
        match=f"Space cannot be reclaimed, because it is not known what {hold.name} needs.*Delete {hold.name}",
    ):
        _collect(history)
    with pytest.raises(Held, match=f"cannot be removed: it is held by {hold.name}, which cannot be read"):
        trash.remove(history.fresh(), oldest(history))
    holds.release(history.fresh(), hold.id)
    assert [each.key for each in night(history).removed] == [hold.key]
    night(history)
    assert {name for name in history.store.objects if name.startswith(("packs/", "points/"))} == history.needed()


def _collect(history: EngineHistory) -> None:
    with leases.held(history.fresh(), "retention") as lease:
        Collector(lease.repository, lease.now(), 0.0).collect(lease, confirm_shrink=True)


def test_a_hold_of_a_newer_format_stops_retention(history: EngineHistory) -> None:
    hold = held(history)
    history.store.objects[hold.name] = history.fresh().keys.seal(hold.name, envelope.encode(holds.KIND, 2, {}))
    with pytest.raises(RepositoryError, match=f"{hold.name} has format 2; .*Update the collection"):
        retention(history.fresh(), NIGHT)


def test_a_hold_of_an_unknown_point_keeps_what_it_names(history: EngineHistory) -> None:
    """As where its point was removed by hand."""
    hold = held(history)
    del history.store.objects[names.manifest(*hold.key)]
    needed = (
        {f"{oldest(history).folder.rpartition('/')[0]}/{hold.key[1]}/{file.name}" for file in hold.point.stored_files}
        if hold.point
        else set()
    )
    result = night(history)
    assert result.collected is not None and result.damaged == {}
    assert needed and needed <= set(history.store.objects)
    holds.release(history.fresh(), hold.id)
    night(history)
    assert needed.isdisjoint(history.store.objects)


@pytest.mark.parametrize("since", [None, 1.0])
def test_a_hold_of_which_a_map_is_gone_stops_collectors_unless_it_was_never_whole(
    history: EngineHistory, since: float | None
) -> None:
    """As one that is about to be withdrawn, or one whose point was lost."""
    hold, point = held(history), oldest(history)
    history.fresh().put_object(hold.name, holds.encode(dataclasses.replace(hold, since=since), point))
    for name in (names.manifest(*hold.key), point.object_name(point.disks[0].map)):
        del history.store.objects[name]
    if since is None:
        _collect(history)
    else:
        with pytest.raises(
            RepositoryError,
            match=f"Space cannot be reclaimed, because it is not known what {hold.name} needs.*Delete {hold.name}",
        ):
            _collect(history)
    assert not history.wrong()


# A repository that cannot be written to.


def test_a_read_only_directory_is_usable_without_a_hold_and_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = EngineHistory()
    history.backup()
    for name, data in history.store.objects.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    repository = Repository(DirectoryStore(str(tmp_path)), "00" * 16)
    point = repository.points_of().points[0]
    monkeypatch.setattr(os, "mkdir", failing(errno.EROFS))
    with pytest.raises(ReadOnly, match="Read-only file system"):
        holding.hold(repository, point, "export")
    attempt = holding.hold_if_writable(repository, point, "export")
    assert attempt.hold is None and attempt.warning is not None
    assert attempt.warning.startswith(
        f"Restore point {point.id} of web1 is used without a hold, because the repository is read-only here: Cannot write "
    )
    monkeypatch.undo()
    attempt = holding.hold_if_writable(repository, point, "export")
    assert attempt.warning is None and holds.listed(repository) == [attempt.hold]


def test_any_other_store_failure_is_an_error(history: EngineHistory) -> None:
    history.store.full = True
    with pytest.raises(RepositoryError, match="No space left"):
        holding.hold_if_writable(history.fresh(), oldest(history), "export")


def test_a_foreign_object_below_holds_protects_nothing_and_is_kept(history: EngineHistory) -> None:
    store: MemoryStore = history.store
    for name in ("holds/README", f"holds/{UUID}/x", f"holds/{UUID}/{point_id(1)}/../../x", f"holds/{'0' * 16}"):
        store.objects[name], store.times[name] = b"", 0.0
    result = night(history)
    assert len(result.removed) == 2 and {name for name in store.objects if name.startswith("holds/")} == {
        *("holds/README", f"holds/{UUID}/x", f"holds/{UUID}/{point_id(1)}/../../x", f"holds/{'0' * 16}")
    }
    assert holds.listed(history.fresh()) == []
