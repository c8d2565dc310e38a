# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions about known repositories, the files that keep them, and locations, each alone."""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import OTHER_UUID, UUID, point, point_id

from _cbt.errors import CbtError, DamagedObject, Refused, RepositoryError
from _cbt.repository.creation import open_or_create
from _cbt.repository.format import envelope
from _cbt.repository.memory import host_state, known_repositories
from _cbt.repository.memory.known_repositories import KnownRepository, merged, objection
from _cbt.repository.memory.memory import Memory, Terms
from _cbt.repository.repository import Repository, configuration_in, open_repository
from _cbt.repository.stores import mounts
from _cbt.repository.stores.directory import DirectoryStore
from _cbt.repository.stores.s3_options import S3Options
from _cbt.repository.stores.s3_store import S3Store

ONE, TWO = "1" * 32, "2" * 32
PLAIN, SECRET = KnownRepository(ONE, False), KnownRepository(ONE, True)
KNOWN = KnownRepository(ONE, True, {UUID: point_id(3), OTHER_UUID: point_id(2)}, (UUID, point_id(3)))

# What was known, what is found, and what is said.
OBJECTIONS: list[tuple[KnownRepository | None, KnownRepository | None, str | None]] = [
    (None, None, None),
    (None, PLAIN, None),
    (None, SECRET, None),
    (PLAIN, PLAIN, None),
    (KNOWN, SECRET, None),
    (PLAIN, None, f"The repository {ONE} that this host knows in /share is missing"),
    (SECRET, None, f"The repository {ONE} that this host knows in /share is missing"),
    (PLAIN, KnownRepository(TWO, False), f"it is {TWO} in place of {ONE}."),
    (SECRET, KnownRepository(TWO, True), f"it is {TWO} in place of {ONE}."),
    (
        SECRET,
        KnownRepository(TWO, False),
        f"it is {TWO} in place of {ONE}, which is not encrypted; the one before was encrypted.",
    ),
    (
        PLAIN,
        KnownRepository(TWO, True),
        f"it is {TWO} in place of {ONE}, which is encrypted; the one before was not encrypted.",
    ),
    (SECRET, PLAIN, "is not encrypted, but this host knows it as encrypted, which cannot change"),
    (PLAIN, SECRET, "is encrypted, but this host knows it as not encrypted, which cannot change"),
]


@pytest.mark.parametrize(("known", "found", "said"), OBJECTIONS)
def test_what_is_said_of_a_repository_that_was_found(
    known: KnownRepository | None, found: KnownRepository | None, said: str | None
) -> None:
    reason = objection(known, found, "/share")
    assert reason is None if said is None else reason is not None and said in reason


def _learned(**newest: str) -> KnownRepository:
    return dataclasses.replace(KNOWN, newest={**KNOWN.newest, **newest})


NEWER, OTHERS = _learned(**{UUID: point_id(5)}), _learned(**{OTHER_UUID: point_id(6)})
BOTH = _learned(**{UUID: point_id(5), OTHER_UUID: point_id(6)})
GONE = dataclasses.replace(KNOWN, newest={OTHER_UUID: point_id(2)})
REPLACED = KnownRepository(TWO, False)

# What is kept, what a run knew before and knows now, and what is to be kept.
MERGES: list[tuple[KnownRepository | None, KnownRepository | None, KnownRepository, KnownRepository]] = [
    (None, None, PLAIN, PLAIN),
    (KNOWN, KNOWN, NEWER, NEWER),
    (OTHERS, KNOWN, NEWER, BOTH),  # another run wrote meanwhile
    (NEWER, KNOWN, OTHERS, BOTH),
    (NEWER, KNOWN, GONE, NEWER),  # whose point this run has not seen
    (KNOWN, KNOWN, GONE, GONE),
    (OTHERS, KNOWN, GONE, dataclasses.replace(OTHERS, newest={OTHER_UUID: point_id(6)})),
    (REPLACED, KNOWN, NEWER, REPLACED),  # another run accepted another repository
    (None, KNOWN, NEWER, NEWER),  # the file was deleted
]


@pytest.mark.parametrize(("kept", "before", "after", "expected"), MERGES)
def test_what_runs_side_by_side_learn_is_put_together(
    kept: KnownRepository | None, before: KnownRepository | None, after: KnownRepository, expected: KnownRepository
) -> None:
    assert merged(kept, before, after) == expected


def test_a_known_repository_round_trips() -> None:
    for known in (PLAIN, SECRET, KNOWN, BOTH):
        assert known_repositories.decode(known_repositories.encode(known, "/share"), "file") == known


BODY = {"location": "/share", "id": ONE, "encrypted": False, "newest": {}, "last": None}


@pytest.mark.parametrize(
    "change",
    [
        {"id": 1},
        {"encrypted": None},
        {"newest": []},
        {"newest": {UUID: "../../../etc/passwd"}},
        {"newest": {"..": point_id(1)}},
        {"last": "x"},
        {"last": f"../{point_id(1)}"},
        {"last": f"{UUID}/{point_id(1)}/x"},
    ],
)
def test_an_invalid_record_of_a_known_repository_is_damage(change: dict[str, object]) -> None:
    assert known_repositories.decode(envelope.encode("known", 1, BODY), "file") == PLAIN
    with pytest.raises(DamagedObject, match="file is damaged"):
        known_repositories.decode(envelope.encode("known", 1, {**BODY, **change}), "file")


def test_a_point_that_appears_counts_as_the_newest_only_if_it_is() -> None:
    newest = point(3)
    older, child = point(2), point(1, parent=point_id(3))  # by a clock that was set back
    for appeared, expected in ((older, newest), (point(4), point(4)), (child, child)):
        after = known_repositories.after_publishing(KNOWN, appeared, newest)
        assert (after.newest[UUID], after.last) == (expected.id, appeared.key)


# The files.


def test_root_keeps_the_state_in_var_lib_and_other_users_in_their_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", chosen)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert host_state.state_folder() == "/var/lib/kvm-cbt/repositories"
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setenv("HOME", "/home/somebody")
        assert host_state.state_folder() == "/home/somebody/.local/state/kvm-cbt/repositories"
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert host_state.state_folder() == "/elsewhere/kvm-cbt/repositories"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_other_users_can_neither_read_nor_write_the_state(
    repository: Repository, place: Path, state_folder: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        look(place)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(each.stat().st_mode) for each in (state_folder, state_folder.parent)} == {0o700}
    files = list(state_folder.iterdir())
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    assert len(files) == 2  # the state and the lock: nothing temporary stays


def look(place: Path | str, accept: bool = False) -> list[str]:
    """Open a repository as a module does; returns the warnings."""
    warnings: list[str] = []
    open_repository(str(place), functools.partial(Memory, terms=Terms(accept, warn=warnings.append))).points_of()
    return warnings


def _state_file(folder: Path) -> Path:
    (found,) = folder.glob("*.json")
    return found


def _cut(folder: Path) -> None:
    file = _state_file(folder)
    file.write_bytes(file.read_bytes()[:-5])


def _emptied(folder: Path) -> None:
    _state_file(folder).write_bytes(b"")


def _linked(folder: Path) -> None:
    file = _state_file(folder)
    file.rename(folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


def _pipe(folder: Path) -> None:
    file = _state_file(folder)
    file.unlink()
    os.mkfifo(file, 0o600)


def _folder(folder: Path) -> None:
    file = _state_file(folder)
    file.unlink()
    file.mkdir(0o700)


def _writable(folder: Path) -> None:
    _state_file(folder).chmod(0o666)


def _of_newer_version(folder: Path) -> None:
    _state_file(folder).write_bytes(envelope.encode("known", 2, BODY))


def _folder_writable(folder: Path) -> None:
    folder.chmod(0o777)


def _folder_linked(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def _parent_writable(folder: Path) -> None:
    folder.parent.chmod(0o770)


def _no_folder(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.write_bytes(b"")


READ = "Cannot read the known state of the repository"
KEEP = "Cannot keep the known state of the repository"


@pytest.mark.parametrize(
    "harm",
    [
        _cut,
        _emptied,
        _linked,
        _pipe,
        _folder,
        _writable,
        _of_newer_version,
        _folder_writable,
        _folder_linked,
        _parent_writable,
        _no_folder,
    ],
)
def test_an_unusable_state_is_a_warning(
    repository: Repository, place: Path, state_folder: Path, harm: Callable[[Path], None]
) -> None:
    look(place)
    harm(state_folder)
    targets = {each: each.read_bytes() for each in state_folder.parent.rglob("elsewhere*") if each.is_file()}
    (warning,) = look(place)
    assert warning.startswith(f"{READ} {place} in {state_folder}: ")
    assert warning.endswith("Check the owner, mode and space of that folder.")
    for each, data in targets.items():
        assert each.read_bytes() == data, "a link was followed"


@pytest.mark.parametrize("harm", [_cut, _emptied, _of_newer_version])
def test_a_damaged_state_is_recreated(
    repository: Repository, place: Path, state_folder: Path, harm: Callable[[Path], None]
) -> None:
    look(place)
    before = _state_file(state_folder).read_bytes()
    harm(state_folder)
    look(place)
    assert look(place) == []
    assert _state_file(state_folder).read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_warning(repository: Repository, place: Path, state_folder: Path) -> None:
    state_folder.parent.parent.write_bytes(b"")
    (warning,) = look(place)
    assert warning.startswith((READ, KEEP))


def test_state_owned_by_another_user_is_not_trusted(
    repository: Repository, place: Path, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(place)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    (warning,) = look(place)
    assert "other users can write there" in warning


def test_another_user_of_the_host_knows_nothing(
    repository: Repository, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(place)
    (place / "repository.json").unlink()
    open_or_create(str(place))
    with pytest.raises(Refused):
        look(place)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert look(place) == []


def test_runs_side_by_side_lose_nothing(repository: Repository, place: Path) -> None:
    """Each thread is a run, whose domain has a point that no other run saw."""
    uuids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(24)]
    memories = [Memory(repository.store, Terms()) for _uuid in uuids]
    memories[0].check_identity(configuration_in(repository.store))
    memories = [Memory(repository.store, Terms()) for _uuid in uuids]
    start = threading.Barrier(len(uuids))

    def run(memory: Memory, uuid: str) -> None:
        start.wait()
        memory.listed(repository, [point(1, uuid=uuid)], uuid)
        memory.published(point(2, uuid=uuid))

    threads = [threading.Thread(target=run, args=each) for each in zip(memories, uuids, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = Memory(repository.store, Terms())._known
    assert known is not None
    assert known.newest == dict.fromkeys(uuids, point_id(2))


def test_nothing_is_written_while_nothing_is_new_and_never_in_check_mode(
    repository: Repository, place: Path, state_folder: Path
) -> None:
    checking = functools.partial(Memory, terms=Terms(keep=False))
    open_repository(str(place), checking).points_of()
    assert not state_folder.parent.exists()
    look(place)
    file = _state_file(state_folder)
    before = file.stat()
    repository.put_object(
        f"points/{UUID}/{point_id(1)}/manifest.json", envelope.encode("manifest", 1, dataclasses.asdict(point(1)))
    )
    open_repository(str(place), checking).points_of()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    look(place)
    after = file.stat().st_ino
    assert after != before.st_ino
    look(place)
    assert file.stat().st_ino == after


# Locations.


def test_different_spellings_of_a_location_are_equal(repository: Repository, place: Path, tmp_path: Path) -> None:
    look(place)
    (tmp_path / "link").symlink_to(place)
    (tmp_path / "up").symlink_to(tmp_path)
    spellings = [
        f"{place}/",
        f"{place}//",
        f"{place}/.",
        f"{place}/../{place.name}",
        f"{tmp_path}/link",
        f"{tmp_path}/link/",
        f"{tmp_path}/up/link",
    ]
    (place / "repository.json").unlink()
    for spelling in spellings:
        with pytest.raises(CbtError, match="is missing"):
            look(spelling)


@pytest.mark.parametrize("target", ["other", "{share}/other", "./x/../other", "second"])
def test_a_folder_of_a_share_that_becomes_a_link_does_not_hide_that_the_repository_was_replaced(
    target: str, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    (share / "x").mkdir(parents=True)
    (share / "second").symlink_to("other")
    (tmp_path / "link").symlink_to(share)
    for folder in ("backup", "other"):
        open_or_create(str(share / folder))
    look(share / "backup")
    (share / "backup").rename(share / "away")
    (share / "backup").symlink_to(target.format(share=share))
    for written in (share / "backup", tmp_path / "link" / "backup"):
        with pytest.raises(Refused, match="is not the one that this host knows there"):
            look(written)


def test_a_link_on_the_host_that_points_to_different_disks_in_turn_is_known_by_each_disk(tmp_path: Path) -> None:
    for disk in ("disk1", "disk2", "disk1", "disk2"):
        if not (tmp_path / disk).exists():
            open_or_create(str(tmp_path / disk))
        (tmp_path / "current").unlink(missing_ok=True)
        (tmp_path / "current").symlink_to(tmp_path / disk)
        assert look(tmp_path / "current") == []
    (tmp_path / "disk2" / "repository.json").unlink()
    with pytest.raises(CbtError, match="is missing"):
        look(tmp_path / "current")


@pytest.mark.parametrize("target", ["loop", "../{folder}/loop"])
def test_a_link_that_leads_to_itself_has_no_more_names_than_the_kernel_follows(target: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(target.format(folder=tmp_path.name))
    (tmp_path / "growing").symlink_to("growing/x")
    assert len(DirectoryStore(str(tmp_path / "loop")).addresses()) <= 41
    assert len(DirectoryStore(str(tmp_path / "growing")).addresses()) <= 41


def test_a_repository_that_is_mounted_elsewhere_is_seen_for_the_first_time(
    repository: Repository, place: Path, tmp_path: Path
) -> None:
    look(place)
    place.rename(tmp_path / "moved")
    assert look(tmp_path / "moved") == []
    with pytest.raises(Refused, match="is missing"):
        look(place)


def _s3(location: str, endpoint: str | None, region: str = "eu-central-1") -> str:
    options = S3Options(endpoint_url=endpoint, region=region, access_key="KEY", secret_key="SECRET")
    (address,) = S3Store(location, options).addresses()
    return address


def test_locations_in_buckets_are_apart_by_server_bucket_and_prefix() -> None:
    pytest.importorskip("boto3")
    same = {
        _s3("s3://b/p", "https://s3.example.com"),
        _s3("s3://b/p/", "https://S3.example.com/"),
        _s3("s3://b//p", "https://s3.example.com:443", region="us-east-1"),
    }
    assert same == {"s3://b/p at s3.example.com:443"}
    aws = {
        _s3("s3://b/p", None),
        _s3("s3://b/p", "https://s3.eu-west-1.amazonaws.com"),
        _s3("s3://b/p", None, region="us-east-1"),
    }
    assert aws == {"s3://b/p at AWS"}
    others = {
        _s3("s3://b/q", "https://s3.example.com"),
        _s3("s3://b", "https://s3.example.com"),
        _s3("s3://c/p", "https://s3.example.com"),
    }
    others |= {
        _s3("s3://b/p", "https://s3.example.com:9000"),
        _s3("s3://b/p", "https://s3.example.org"),
        _s3("s3://b/p", "https://notamazonaws.com"),
    }
    assert len(others | same | aws) == 8


# Shares that are not mounted.

TABLE = """
# /dev/sdz1 /backup/off ext4 defaults 0 0
UUID=1 / ext4 defaults 0 1
nas:/kvm   /backup\\040up nfs4 defaults,_netdev 0 0
nas:/other /srv/backup/ nfs4 noauto 0 0
/dev/sdb1 none swap sw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "mounted", "expected"),
    [
        ("/srv/backup", [], "/srv/backup"),
        ("/srv/backup/kvm/one", [], "/srv/backup"),
        ("/srv/backup/kvm", ["/srv/backup"], None),
        ("/srv/backups", [], None),
        ("/srv", [], None),
        ("/backup up/kvm", [], "/backup up"),
        ("/backup/off", [], None),
        ("/none", [], None),
        ("/anywhere", [], None),
    ],
)
def test_a_share_that_should_be_mounted_but_is_not_is_detected(
    path: str, mounted: list[str], expected: str | None
) -> None:
    assert mounts.unmounted(path, TABLE, mounted.__contains__) == expected


def test_no_repository_is_created_below_a_share_that_is_not_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "fstab"
    table.write_text(f"nas:/kvm {tmp_path}/share nfs4 defaults 0 0\n")
    monkeypatch.setattr(mounts, "FSTAB", str(table))
    (tmp_path / "share").mkdir()
    for check_only in (True, False):
        with pytest.raises(
            Refused, match=rf"Cannot create a repository in {tmp_path}/share/kvm: {tmp_path}/share is in .* not mounted"
        ):
            open_or_create(f"{tmp_path}/share/kvm", check_only)
    with pytest.raises(
        RepositoryError,
        match=f"There is no repository in .*does not exist.* {tmp_path}/share is in {table} but not mounted: mount it",
    ):
        open_repository(f"{tmp_path}/share/kvm")
    assert list((tmp_path / "share").iterdir()) == []
    table.write_text("")
    assert open_or_create(f"{tmp_path}/share/kvm") is not None
