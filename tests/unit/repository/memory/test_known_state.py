# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository that is another one than a host knows, or that went back, is refused; what retention does never is."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_history import EngineHistory
from samples import OTHER_UUID, UUID
from stores_for_tests import MemoryStore

from _cbt.errors import Refused, RepositoryError
from _cbt.operations import keys as repository_keys
from _cbt.operations.copy import CopyRequest, copy
from _cbt.operations.keys import KeyRequest
from _cbt.operations.point.new_point import StoringOptions
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_plan import GRACE
from _cbt.repository import creation
from _cbt.repository import repository as opening
from _cbt.repository.format import configuration, manifests, names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.memory.memory import Memory, Terms
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import removals, trash
from _cbt.repository.sharing.leases import LAPSE

THIRD_UUID = "11111111-2222-4333-8444-555566667777"
BACK = "went back: restore point"


class Share:
    """A location with a repository in it, which hosts use, and to which things happen."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, passphrase: str | None) -> None:
        self.folder, self._patch, self.passphrase = folder, monkeypatch, passphrase
        created = configuration.create(passphrase)
        keys = configuration.keys_of(created, passphrase, "/share")
        if passphrase is None:
            created = configuration.Configuration("00" * 16)  # what the manifests name
        self.history = EngineHistory(keys)
        self.history.numbers = 1000  # hours after the begin of the year
        self.store.objects[configuration.NAME] = created.encode()
        self.warnings: list[str] = []
        for module in (creation, opening, repository_keys):
            monkeypatch.setattr(module, "open_store", lambda _place: self.store)

    @property
    def store(self) -> MemoryStore:
        """What is in the location now."""
        return self.history.store

    def on(self, host: str) -> None:
        """What follows happens on this host."""
        self._patch.setenv("XDG_STATE_HOME", str(self.folder / host))

    def open(self, host: str = "a", accept: bool = False, keep: bool = True, passphrase: str | None = "") -> Repository:
        """Open it as a run of a host does."""
        self.on(host)
        terms = Terms(accept, keep, warn=self.warnings.append)
        given = self.passphrase if passphrase == "" else passphrase
        return opening.open_repository(
            RepositoryLocation("/share", passphrase=given), functools.partial(Memory, terms=terms)
        )

    def arrange(self, accept: bool = False, check_only: bool = False, rebuild: bool = False, host: str = "a") -> bool:
        """Have a repository there, as cbt_repository does; returns whether that changed anything."""
        self.on(host)
        watching = functools.partial(Memory, terms=Terms(accept, not check_only, warn=self.warnings.append))
        place = RepositoryLocation("/share", passphrase=self.passphrase)
        return repository_keys.apply_keys(place, KeyRequest(rebuild=rebuild), check_only, watching).changed

    def look(self, host: str = "a", **terms: bool) -> list[str]:
        """Open it and list all points, as a run does that reads; returns their ids."""
        return [each.id for each in self.open(host, **terms).points_of().points]

    def look_at(self, uuid: str, host: str = "a") -> None:
        """Open it and list the points of a domain, as a run does that backs it up."""
        self.open(host).points_of(uuid)

    def backup(self, host: str = "a", uuid: str = UUID) -> RestorePoint:
        """A backup by a host."""
        self.store.clock += 60
        repository = self.open(host)
        self.history.fresh = lambda: repository  # type: ignore[method-assign]
        return self.history.backup(uuid)

    def remove(self, *gone: RestorePoint, host: str = "a", **request: object) -> None:
        """Remove points and collect with a grace period, by a host."""
        repository = self.open(host)
        for each in gone:
            trash.remove(repository, each)
        retention(repository, RetentionRequest(**request))  # type: ignore[arg-type]

    def collect(self, host: str = "a", **request: object) -> None:
        """Collect so much later that what is in the trash goes."""
        self.store.clock += GRACE + LAPSE * 2
        self.remove(host=host, **request)

    def delete(self, *prefixes: str) -> None:
        """Delete objects from outside."""
        for name in [name for name in self.store.objects if name.startswith(prefixes)]:
            del self.store.objects[name]


@pytest.fixture(params=[None, "correct horse"], ids=["plain", "encrypted"])
def share(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Share:
    """A repository with points of two domains, which the hosts a and b know."""
    monkeypatch.setattr("_cbt.repository.crypto.key_slots.COST", 1 << 4)
    made = Share(tmp_path, monkeypatch, request.param)
    made.backup("a")
    made.backup("a", OTHER_UUID)
    made.backup("a")
    made.look("b")
    return made


def latest(share: Share, uuid: str = UUID) -> RestorePoint:
    """The newest point of a domain."""
    return share.open("nobody").points_of(uuid).points[-1]


# What goes on in a repository that is used, by other hosts as well.


def added_elsewhere(share: Share) -> None:
    share.backup("b")
    share.backup("b", THIRD_UUID)


def removed_by_retention(share: Share) -> None:
    share.remove(latest(share))


def removed_by_another_host(share: Share) -> None:
    share.remove(latest(share), latest(share, OTHER_UUID), host="b")


def removed_and_collected(share: Share) -> None:
    share.remove(latest(share), host="b")
    share.collect("b")
    assert not [name for name in share.store.objects if name.startswith("trash/")]


def removed_without_grace(share: Share) -> None:
    share.remove(latest(share), host="b", grace=0.0)


def all_removed_and_collected(share: Share) -> None:
    share.remove(*share.open("b").points_of().points, host="b")
    share.collect("b", confirm_shrink=True)


def removed_long_ago(share: Share) -> None:
    """So that its record was merged with others, several times."""
    share.remove(latest(share), host="b")
    for _day in range(40):
        share.collect("b")
        share.remove(share.backup("b"), host="b")
    share.collect("b")
    assert len([name for name in share.store.objects if name.startswith("removed/")]) < 20


def removed_and_brought_back(share: Share) -> None:
    gone = latest(share)
    share.remove(gone)
    share.remove(undelete=(gone.id,))
    share.collect()


def compacted(share: Share) -> None:
    share.history.disk.write(3, 200)
    share.backup("b")
    share.remove(*share.open("b").points_of(UUID).points[:2], host="b", grace=0.0, compact_below=100)
    share.collect("b", compact_below=100)


def newest_manifest_damaged(share: Share) -> None:
    name = names.manifest(*latest(share).key)
    share.store.objects[name] = share.store.objects[name][:-2]


def withdrawn_after_another_host_saw_it(share: Share) -> None:
    """The store carries out what it seems to refuse, so that a failed run deletes the manifest again."""
    whole = Repository.publish

    def fail(repository: Repository, made: RestorePoint, replace: bool = True) -> bool:
        whole(repository, made, replace)
        share.look("b")
        raise RepositoryError("no answer")

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(Repository, "publish", fail)
        with pytest.raises(RepositoryError, match="no answer"):
            share.backup("a")


def a_point_that_no_host_can_have_made(share: Share) -> None:
    """By somebody who can write there: it is not what is known, and keeps nothing else from being known."""
    hostile = dataclasses.replace(latest(share), id="../../..", uuid="..")
    share.open("b").put_object(names.manifest(UUID, f"20990101T000000Z-{'0' * 8}"), manifests.encode(hostile))


def removal_recorded_beside_a_damaged_record(share: Share) -> None:
    removed_and_collected(share)
    share.store.put(f"removed/{UUID}/{'0' * 16}", b"x")


NORMAL = [
    added_elsewhere,
    removed_by_retention,
    removed_by_another_host,
    removed_and_collected,
    removed_without_grace,
    all_removed_and_collected,
    removed_long_ago,
    removed_and_brought_back,
    compacted,
    newest_manifest_damaged,
    withdrawn_after_another_host_saw_it,
    a_point_that_no_host_can_have_made,
    removal_recorded_beside_a_damaged_record,
]


@pytest.mark.parametrize("happens", NORMAL, ids=lambda row: row.__name__)
def test_normal_activity_in_a_repository_raises_no_alarm(share: Share, happens: Callable[[Share], None]) -> None:
    happens(share)
    share.look_at(UUID)
    share.look("a", keep=False)
    for host in ("a", "b", "new"):
        for _run in range(2):
            share.look(host)
    share.backup("a")
    share.look("b")
    assert share.warnings == []


# What must be noticed.


def rolled_back(share: Share) -> None:
    before = share.store.copy()
    share.backup()
    share.history.store = before


def rolled_back_and_used_by_another_host(share: Share) -> None:
    rolled_back(share)
    share.backup("b")
    share.remove(share.backup("b"), host="b")
    share.collect("b")


def rolled_back_to_a_state_before_a_removal(share: Share) -> None:
    before = share.store.copy()
    share.remove(share.backup("a"), latest(share))
    share.backup("a")
    share.history.store = before


def newest_point_deleted(share: Share) -> None:
    share.delete(f"points/{'/'.join(latest(share).key)}")


def points_of_a_domain_deleted(share: Share) -> None:
    share.delete(f"points/{OTHER_UUID}")


def emptied(share: Share) -> None:
    share.delete("points/", "packs/", "trash/")


def brought_back_and_lost(share: Share) -> None:
    removed_and_brought_back(share)
    newest_point_deleted(share)


def newest_lost_that_a_clock_set_back_made_older(share: Share) -> None:
    """It is made from the newest one, so that it comes after it."""
    before = share.store.copy()
    share.history.numbers = 500
    share.backup()
    share.look()
    share.history.store = before


def newest_lost_beside_one_from_the_future(share: Share) -> None:
    future = dataclasses.replace(
        latest(share), uuid=THIRD_UUID, created="2099-01-01T00:00:00+00:00", id="20990101T000000Z-00000000"
    )
    repository = share.open("b")
    repository.publish(future)
    share.look()
    before = share.store.copy()
    share.backup()
    share.history.store = before


def a_copy_of_an_old_point_lost(share: Share) -> None:
    """Its id and its time are older than all there is."""
    before = share.store.copy()
    copied_in(share, THIRD_UUID)
    assert share.open("nobody").points_of().points[0].uuid == THIRD_UUID
    share.history.store = before


def a_trash_entry_that_cannot_be_read(share: Share) -> None:
    gone = latest(share)
    share.delete(f"points/{'/'.join(gone.key)}")
    share.store.put(f"trash/{'/'.join(gone.key)}/{'0' * 16}", b"x")


def a_record_that_cannot_be_read(share: Share) -> None:
    share.delete(f"points/{'/'.join(latest(share).key)}")
    share.store.put(f"removed/{UUID}/{'0' * 16}", b"x")


WENT_BACK = [
    rolled_back,
    rolled_back_and_used_by_another_host,
    rolled_back_to_a_state_before_a_removal,
    newest_point_deleted,
    points_of_a_domain_deleted,
    emptied,
    brought_back_and_lost,
    newest_lost_that_a_clock_set_back_made_older,
    newest_lost_beside_one_from_the_future,
    a_copy_of_an_old_point_lost,
    a_trash_entry_that_cannot_be_read,
    a_record_that_cannot_be_read,
]


@pytest.mark.parametrize("happens", WENT_BACK, ids=lambda row: row.__name__)
def test_a_rolled_back_repository_is_refused_until_it_is_accepted_once(
    share: Share, happens: Callable[[Share], None]
) -> None:
    happens(share)
    for _run in range(2):
        with pytest.raises(Refused, match=rf"{BACK} \S+ of domain \S+, .*accept_repository: true"):
            share.look("a")
    share.look("new")  # a host that restores for the first time knows nothing
    there = share.look("a", accept=True, keep=False)
    with pytest.raises(Refused, match=BACK):  # check mode took nothing
        share.look("a")
    assert share.look("a", accept=True) == there
    assert share.look("a") == share.look("a", accept=True) == there
    share.backup("a")
    share.look("a")


@pytest.mark.parametrize("happens", [rolled_back, emptied, a_copy_of_an_old_point_lost], ids=lambda row: row.__name__)
def test_a_run_for_a_new_domain_detects_a_rollback_by_the_last_point(
    share: Share, happens: Callable[[Share], None]
) -> None:
    happens(share)
    with pytest.raises(Refused, match=BACK):
        share.open("a")


def test_a_host_that_only_reads_detects_a_rollback_by_the_newest_point(share: Share) -> None:
    before = share.store.copy()
    share.backup("a")
    share.look("b")
    share.history.store = before
    with pytest.raises(Refused, match=BACK):
        share.open("b")


def copied_in(share: Share, uuid: str) -> Repository:
    """Copy a point that is older than all there is, as one run does; returns the repository of that run."""
    other, repository = EngineHistory(), share.open()
    other.backup(uuid)
    copy(
        Repository(other.store, "22" * 16),
        repository,
        CopyRequest(options=StoringOptions(compression="none", workers=1)),
    )
    return repository


def test_what_a_run_published_stays_the_last_point_when_it_lists_newer_ones(share: Share) -> None:
    before = share.store.copy()
    copied_in(share, THIRD_UUID).points_of()
    share.history.store = before
    with pytest.raises(Refused, match=BACK):
        share.open()


def test_an_older_copy_does_not_take_the_place_of_the_newest_point_of_its_domain(share: Share) -> None:
    newest = latest(share)
    copied_in(share, UUID)
    share.delete(f"points/{'/'.join(newest.key)}")
    share.open()
    with pytest.raises(Refused, match=f"{BACK} {newest.id}"):
        share.look_at(UUID)


def test_a_run_for_a_domain_notices_what_that_domain_lost(share: Share) -> None:
    points_of_a_domain_deleted(share)
    share.look_at(UUID)
    with pytest.raises(Refused, match=BACK):
        share.look_at(OTHER_UUID)


def test_accepting_takes_the_whole_state_and_not_that_of_one_domain_alone(share: Share) -> None:
    emptied(share)
    share.open("a", accept=True)
    share.look_at(UUID)
    assert share.look("a") == []


def test_accepting_an_unchanged_repository_forgets_nothing(share: Share) -> None:
    share.look("a", accept=True)
    rolled_back_before = latest(share)
    share.delete(f"points/{'/'.join(rolled_back_before.key)}")
    with pytest.raises(Refused, match=BACK):
        share.look("a")


def test_a_point_that_appears_while_it_is_looked_for_is_there(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is brought back between the looks at its manifest and at the trash."""
    gone = latest(share)
    repository = share.open()
    manifest = share.store.objects.pop(names.manifest(*gone.key))
    whole = MemoryStore.list

    def bring_back(store: MemoryStore, prefix: str) -> object:
        store.objects[names.manifest(*gone.key)] = manifest
        return whole(store, prefix)

    monkeypatch.setattr(MemoryStore, "list", bring_back)
    assert not removals.vanished(repository, gone.key)


def test_a_record_that_is_merged_while_it_is_read_is_found(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    removed_and_collected(share)
    (name,) = [name for name in share.store.objects if name.startswith("removed/")]
    (gone,) = removals._ids(share.open("nobody"), name)
    repository = share.open("nobody")
    whole = Repository.get_object

    def merge(opened: Repository, asked: str) -> bytes:
        if asked == name:
            monkeypatch.setattr(Repository, "get_object", whole)
            opened.put_object(f"removed/{UUID}/{'0' * 16}", whole(opened, name))
            opened.store.delete(name)
        return whole(opened, asked)

    monkeypatch.setattr(Repository, "get_object", merge)
    assert removals.recorded(repository, (UUID, gone))


def test_no_object_of_the_record_grows_without_bounds_and_none_is_forgotten(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "MOST", 50)
    monkeypatch.setattr(removals, "_SMALL", 1400)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    ids = [f"{start + datetime.timedelta(hours=hour):%Y%m%dT%H%M%SZ}-{hour:08x}" for hour in range(700)]
    repository = share.open()
    full: set[str] = set()
    for place in range(0, len(ids), 7):
        removals.record(repository, [(UUID, each) for each in ids[place : place + 7]])
        records = set(share.store.list("removed"))
        assert full <= records, "what is full is not written again"
        full |= {name for name in records - full if len(removals._ids(repository, name)) == 50}
    assert len(full) >= 10
    records = list(share.store.list("removed"))
    kept = [removals._ids(repository, name) for name in records]
    assert set().union(*kept) == set(ids)
    assert max(map(len, kept)) == 50
    assert len(records) < 14 + 16


# Another repository.


def replaced(share: Share, passphrase: str | None) -> None:
    share.history.store = MemoryStore()
    share.store.objects[configuration.NAME] = configuration.create(passphrase).encode()


def gone(share: Share) -> None:
    share.history.store = MemoryStore()


def made_plain(share: Share) -> None:
    known = configuration.decode(share.store.objects[configuration.NAME], "share")
    share.store.objects[configuration.NAME] = configuration.Configuration(known.id).encode()


@pytest.mark.parametrize("passphrase", [None, "theirs"])
def test_another_repository_is_refused_until_it_is_accepted_once(share: Share, passphrase: str | None) -> None:
    before = share.store
    replaced(share, passphrase)
    for given in (None, "theirs", share.passphrase):  # whatever it takes to open it
        with pytest.raises(
            Refused,
            match="is not the one that this host knows there: it is [0-9a-f]{32} in place of .*accept_repository: true",
        ):
            share.open("a", passphrase=given)
    share.open("a", accept=True, keep=False, passphrase=passphrase)
    with pytest.raises(Refused):  # check mode took nothing
        share.open("a", passphrase=passphrase)
    for accept in (True, False, True):
        share.open("a", accept=accept, passphrase=passphrase)
    share.history.store = before
    with pytest.raises(Refused):
        share.open("a")


def test_an_encrypted_repository_that_was_made_a_plain_one_is_refused(share: Share) -> None:
    known = configuration.decode(share.store.objects[configuration.NAME], "share")
    share.store.objects[configuration.NAME] = configuration.Configuration(known.id).encode()
    for passphrase in dict.fromkeys((None, share.passphrase)):
        with (
            pytest.raises(Refused, match="cannot change: its configuration was replaced")
            if share.passphrase
            else contextlib.nullcontext()
        ):
            share.open("a", passphrase=passphrase)


def test_a_missing_repository_is_refused_and_not_recreated(share: Share) -> None:
    share.history.store = MemoryStore()
    share.on("a")
    created = functools.partial(creation.open_or_create, RepositoryLocation("/share", passphrase=share.passphrase))
    for check_only in (True, False):
        with pytest.raises(
            Refused,
            match="The repository [0-9a-f]{32} that this host knows in memory is missing.*accept_repository: true",
        ):
            created(check_only, functools.partial(Memory, terms=Terms(keep=not check_only)))
    assert created(True, functools.partial(Memory, terms=Terms(accept=True, keep=False))) is None
    assert share.store.objects == {}
    with pytest.raises(RepositoryError, match="There is no repository"):
        share.open("a", accept=True)
    with pytest.raises(RepositoryError, match="There is no repository"):
        share.open("a")
    made = created(False, functools.partial(Memory, terms=Terms()))
    assert made is not None
    assert share.open("a").id == made.id


def test_a_repository_that_was_created_is_known_before_anything_is_stored(share: Share) -> None:
    share.history.store = MemoryStore()
    share.on("new")
    creation.open_or_create(
        RepositoryLocation("/share", passphrase=share.passphrase), watching=functools.partial(Memory, terms=Terms())
    )
    replaced(share, share.passphrase)
    with pytest.raises(Refused, match="is not the one"):
        share.open("new")


def test_the_option_that_accepts_is_named_as_the_caller_names_it(share: Share) -> None:
    replaced(share, None)
    share.on("a")
    with pytest.raises(Refused, match="once with dest_accept_repository: true"):
        opening.open_repository(
            RepositoryLocation("/share"), functools.partial(Memory, terms=Terms(option="dest_accept_repository"))
        )


def test_the_rollback_check_costs_one_request_and_no_more_without_a_problem(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    for kind in ("get", "size", "list", "entries", "occupants"):
        whole = getattr(MemoryStore, kind)
        monkeypatch.setattr(
            MemoryStore,
            kind,
            lambda store, *names, kind=kind, whole=whole: (counted.append((kind, *names)), whole(store, *names))[1],
        )

    def requests(run: Callable[[], Repository]) -> collections.Counter[tuple[str, ...]]:
        counted.clear()
        repository = run()
        repository.points_of(UUID)
        repository.points_of()
        return collections.Counter(counted)

    newest = latest(share)
    place = RepositoryLocation("/share", passphrase=share.passphrase)
    more = requests(share.open)
    without = requests(lambda: opening.open_repository(place))
    name = names.manifest(*newest.key)
    assert more - without == {("size", name): 1}


# cbt_repository.


def test_no_repository_is_created_where_another_one_is_known_until_that_is_accepted(share: Share) -> None:
    share.history.store = MemoryStore()
    for check_only in (True, False):
        with pytest.raises(Refused, match="is missing"):
            share.arrange(check_only=check_only)
    assert share.arrange(accept=True, check_only=True)
    assert share.store.objects == {}
    assert share.arrange(accept=True)
    assert [share.arrange(accept=accept) for accept in (True, False)] == [False, False]
    share.look("a")


def test_a_repository_is_known_as_soon_as_it_was_created(share: Share) -> None:
    share.history.store = MemoryStore()
    assert share.arrange(host="new")
    replaced(share, share.passphrase)
    for check_only in (True, False):
        with pytest.raises(Refused, match="is not the one"):
            share.arrange(check_only=check_only, host="new")


def test_a_rolled_back_repository_is_refused_when_its_passphrases_are_changed(share: Share) -> None:
    rolled_back(share)
    for check_only in (True, False):
        with pytest.raises(Refused, match=BACK):
            share.arrange(check_only=check_only)
    assert not share.arrange(accept=True)
    assert not share.arrange()


@pytest.mark.parametrize("share", [None], indirect=True)  # that of an encrypted repository cannot be made again
def test_a_lost_configuration_is_rebuilt_only_for_the_known_repository(share: Share) -> None:
    share.delete(configuration.NAME)
    before = share.store.copy()
    with pytest.raises(RepositoryError, match="is not a repository"):
        share.arrange()
    assert share.arrange(rebuild=True)
    assert not share.arrange(rebuild=True)
    share.look("a")
    # Of an older copy.
    share.backup("a")
    share.history.store = before
    with pytest.raises(Refused, match=BACK):
        share.arrange(rebuild=True)
    # Of another one.
    for each in share.open("nobody").points_of().points if share.arrange(rebuild=True, host="nobody") else ():
        share.store.objects[names.manifest(*each.key)] = manifests.encode(
            dataclasses.replace(each, repository="11" * 16)
        )
    share.delete(configuration.NAME)
    with pytest.raises(Refused, match="it is 1{32} in place of 0{32}"):
        share.arrange(rebuild=True)
    assert configuration.NAME not in share.store.objects


def test_no_repository_is_arranged_below_a_share_that_is_not_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fstab").write_text(f"nas:/kvm {tmp_path}/share nfs4 defaults 0 0\n")
    monkeypatch.setattr("_cbt.repository.stores.mounts.FSTAB", str(tmp_path / "fstab"))
    for check_only in (True, False):
        with pytest.raises(Refused, match="not mounted"):
            repository_keys.apply_keys(RepositoryLocation(f"{tmp_path}/share/kvm"), KeyRequest(), check_only)
    assert not (tmp_path / "share").exists()
