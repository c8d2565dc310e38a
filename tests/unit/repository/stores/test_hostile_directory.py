"""A repository in a directory that others can write to: whatever stands in the place of a folder or an object, the host is not harmed.

In turn, every folder and an object of every kind is replaced by what it must not be. All that is done with a repository then ends with
an error of the engine or leaves it alone, in little memory, and nothing outside of the repository is changed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy as copying_python
import datetime
import hashlib
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_history import EngineHistory
from every_object import bounded_run, full_history, removed
from histories import KEYS
from store_contract import LEASE, OTHER_PACK, PACK
from stores_for_tests import MemoryStore

from _cbt.errors import CbtError, DamagedObject, ObjectMissing, RepositoryError
from _cbt.operations import info, keys, repository_status
from _cbt.operations.copy import CopyRequest, copy
from _cbt.operations.point.new_point import StoringOptions
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository import repository as opening
from _cbt.repository.format import configuration, names
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import holding, holds, leases
from _cbt.repository.stores import folders
from _cbt.repository.stores.directory import DirectoryStore

OLD = 1_000_000_000  # seconds since 1970; everything is as old, so that all that lapses has lapsed
SPARSE = 1 << 40
SECONDS = 60  # after which something hangs


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Little memory, and an end."""

    with bounded_run(SECONDS):
        yield


@pytest.fixture(autouse=True)
def quick_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored here need not outlast a loss of power."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def written_out(store: MemoryStore, root: Path) -> None:
    """The objects of a store as files."""
    for name, data in store.objects.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (OLD, OLD))


def tree(root: Path) -> dict[str, object]:
    """All there is below a folder, to the times."""
    found: dict[str, object] = {}
    for path in [root, *root.rglob("*")]:
        known = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(known.st_mode) else ""
        found[str(path.relative_to(root))] = (known.st_mode, known.st_mtime_ns, known.st_nlink, known.st_ino, content)
    return found


# What is done with a repository.


def _listed(history: EngineHistory) -> None:
    repository = history.fresh()
    info.describe_repository(repository)
    info.healths(repository, info.list_points(repository)[0])
    leases.lease_holders(repository)


def _state(history: EngineHistory) -> None:
    repository_status.status(history.fresh(), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))


def _held(history: EngineHistory) -> None:
    repository = history.fresh()
    for each in repository.points_of().points[:1]:
        holds.release(repository, holding.hold(repository, each, "export").id)


def _read(history: EngineHistory) -> None:
    for each in history.fresh().points_of().points:
        with contextlib.suppress(CbtError):
            history.read(each.id, each.uuid)
        for file in each.files.values():
            with contextlib.suppress(CbtError):
                history.repository.get_file(each, file)


def _copied_from(history: EngineHistory) -> None:
    copy(
        history.fresh(),
        Repository(MemoryStore(), "11" * 16),
        CopyRequest(options=StoringOptions(compression="none", workers=1)),
    )


def _copied_to(history: EngineHistory) -> None:
    source = Repository(history.source.copy(), "11" * 16, history.fresh().keys)  # type: ignore[attr-defined]
    copy(source, history.fresh(), CopyRequest(options=StoringOptions(compression="none", workers=1)))


def _swept(history: EngineHistory) -> None:
    history.store.sweep()


def _verified(history: EngineHistory) -> None:
    warnings: list[str] = []
    verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1, sample=50), warn=warnings.append)
    if warnings:
        raise RepositoryError(". ".join(warnings))


def _opened(history: EngineHistory) -> None:
    with contextlib.suppress(CbtError):
        opening.configuration_in(history.store)
    with contextlib.suppress(CbtError):
        keys.lost(history.store)
    keys.rebuilt(history.store)


VERBS: dict[str, Callable[[EngineHistory], object]] = {
    "open and rebuild": _opened,
    "list": _listed,
    "verify without a record": lambda history: verify(
        history.fresh(), VerifyRequest(wanted=ALL, workers=1), record=False
    ),
    "read for a restore": _read,
    "retention in check mode": lambda history: retention(
        history.fresh(), RetentionRequest(Rules(last=1), compact_below=99, grace=0.0), check_only=True
    ),
    "copy from it": _copied_from,
    "sizes, growth, damage and holds": _state,
    "hold and release": _held,
    "sweep": _swept,
    "verify": _verified,
    "a backup": lambda history: history.backup(),
    "copy to it": _copied_to,
    "undelete": lambda history: retention(
        history.fresh(), RetentionRequest(undelete=(removed(history),), collect=False)
    ),
    "retention": lambda history: retention(
        history.fresh(), RetentionRequest(Rules(last=1), compact_below=99, grace=0.0)
    ),
    "retention again": lambda history: retention(
        history.fresh(), RetentionRequest(compact_below=99, grace=0.0, confirm_shrink=True)
    ),
}


# What is put in the place of something.


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(path: Path, outside: Path, _other: bytes) -> None:
    """What was there, elsewhere on the host, with a link to it."""
    path.rename(outside / "linked")
    path.symlink_to(outside / "linked")


def _link_to_the_host(path: Path, outside: Path, _other: bytes) -> None:
    _clear(path)
    path.symlink_to(outside)


def _folder(path: Path, _outside: Path, _other: bytes) -> None:
    _clear(path)
    (path / "inner").mkdir(parents=True)


def _pipe(path: Path, _outside: Path, _other: bytes) -> None:
    _clear(path)
    os.mkfifo(path)


def _socket(path: Path, _outside: Path, _other: bytes) -> None:
    _clear(path)
    here = os.getcwd()
    os.chdir(path.parent)  # its path may be longer than a socket's
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path, _outside: Path, _other: bytes) -> None:
    _clear(path)
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def _sparse(path: Path, _outside: Path, _other: bytes) -> None:
    _clear(path)
    with open(path, "wb") as file:
        file.truncate(SPARSE)
    os.utime(path, (OLD, OLD))


def _another(path: Path, _outside: Path, other: bytes) -> None:
    _clear(path)
    path.write_bytes(other)
    os.utime(path, (OLD, OLD))


REPLACEMENTS = {
    each.__name__[1:]: each for each in (_link, _link_to_the_host, _folder, _pipe, _socket, _device, _sparse, _another)
}


def places(objects: list[str]) -> dict[str, str]:
    """An object of every kind and every folder above one, by what they are called in a test's name."""
    found: dict[str, str] = {}
    for kind in names.KINDS:
        name = next(each for each in objects if (taken := names.parsed(each)) is not None and taken.kind is kind)
        found[kind.template] = name
        parts, template = name.split("/"), kind.template.split("/")
        found.update({"/".join(template[:depth]) + "/": "/".join(parts[:depth]) for depth in range(1, len(parts))})
    return {**found, "tmp/": names.TEMPORARY}


def _folders_above(place: str) -> list[str]:
    parts = place.split("/")
    return ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]


PLACES = sorted(
    {
        "tmp/",
        *(kind.template for kind in names.KINDS),
        *(above for kind in names.KINDS for above in _folders_above(kind.template)),
    }
)


@pytest.fixture(scope="module", params=KEYS)
def made(request: pytest.FixtureRequest) -> Iterator[EngineHistory]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        history = full_history(request.param, monkeypatch)
        history.store.objects[configuration.NAME] = configuration.Configuration("00" * 16).encode()
        yield history


def in_directory(made: EngineHistory, root: Path) -> EngineHistory:
    """The same history, its objects as files."""
    written_out(made.store, root)
    (root / names.TEMPORARY).mkdir()
    (root / names.TEMPORARY / names.temporary(socket.gethostname(), "0" * 16)).write_bytes(b"left")
    history = copying_python.copy(made)
    history.store, history.source = DirectoryStore(str(root)), made.store  # type: ignore[assignment,attr-defined]
    history.truth, history.disk = dict(made.truth), copying_python.deepcopy(made.disk)
    return history


def done_with(history: EngineHistory, where: str) -> dict[str, str]:
    """All that is done with a repository, and what came of it."""
    outcomes = {}
    for verb, act in VERBS.items():
        try:
            act(history)
            outcomes[verb] = ""
        except CbtError as error:
            assert str(error), f"{where}: {verb} says nothing"
            outcomes[verb] = str(error)
    return outcomes


def _lure(path: Path, outside: Path) -> None:
    """Files of the host that have the names of what is in a folder of the repository, so that whoever is led there finds what he looks for."""
    if path.is_dir():
        shutil.copytree(path, outside, dirs_exist_ok=True)
    else:
        shutil.copy2(path, outside)


@pytest.mark.parametrize("place", PLACES)
def test_no_replacement_of_an_object_harms_the_host(place: str, made: EngineHistory, tmp_path: Path) -> None:
    """Whatever is met is an error of the engine, or is left alone."""
    for what, replace in REPLACEMENTS.items():
        base = tmp_path / what
        root, outside = base / "repository", base / "outside"
        outside.mkdir(parents=True)
        history = in_directory(made, root)
        name = places(list(made.store.objects))[place]
        _lure(root / name, outside)
        other = made.store.objects[next(each for each in sorted(made.store.objects) if not each.startswith(name))]
        replace(root / name, outside, other)
        before = tree(outside)
        outcomes = done_with(history, f"{what} as {name}")
        assert tree(outside) == before, f"{what} as {name}: the host was changed by one of {outcomes}"
        assert {each.name for each in base.iterdir()} == {"repository", "outside"}
        if what == "link" and place not in MAY_BE_PASSED_OVER:
            assert any(outcomes.values()), f"a link in the place of {name} was followed, or nothing is said of it"
        shutil.rmtree(base)


# What no verb needs to look at here, or makes anew without reading it.
MAY_BE_PASSED_OVER = {"repository.json", "collected.json", "tmp/", "verified/{uuid}/turn-{selection}-{slices}"}


# The store by itself.


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "repository"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the host, with files that have the names of a lease and a pack."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in (LEASE, PACK):
        (folder / Path(name).name).write_bytes(b"precious")
    return folder


READING: dict[str, Callable[[DirectoryStore], object]] = {
    "get": lambda store: store.get(LEASE),
    "get_range": lambda store: store.get_range(LEASE, 0, 4),
    "size": lambda store: store.size(LEASE),
    "modified": lambda store: store.modified(LEASE),
}
CHANGING: dict[str, Callable[[DirectoryStore], object]] = {
    "list": lambda store: list(store.list("leases")),
    "entries": lambda store: list(store.entries("leases")),
    "delete": lambda store: store.delete(LEASE),
}
WRITING: dict[str, Callable[[DirectoryStore], object]] = {
    "put": lambda store: store.put(LEASE, b"new"),
    "put a new one": lambda store: store.put(LEASE, b"new", replace=False),
}


@pytest.mark.parametrize("call", [*READING, *CHANGING, *WRITING])
def test_a_folder_that_is_a_link_is_not_followed(call: str, store: DirectoryStore, outside: Path) -> None:
    os.mkdir(store.location)
    os.symlink(outside, f"{store.location}/leases")
    before = tree(outside)
    kind = DamagedObject if call in READING else RepositoryError
    with pytest.raises(
        kind,
        match=f"{store.location}/leases is a symbolic link and not a folder. Links below a repository are not followed. Move it away",
    ):
        {**READING, **CHANGING, **WRITING}[call](store)
    assert tree(outside) == before


@pytest.mark.parametrize("what", ["link", "pipe", "socket", "device", "folder"])
@pytest.mark.parametrize("call", [*READING, *CHANGING])
def test_anything_but_a_file_is_neither_read_nor_listed_nor_deleted(
    call: str, what: str, store: DirectoryStore, outside: Path
) -> None:
    store.put(LEASE, b"x")
    store.put(f"leases/{'2' * 16}", b"x")
    REPLACEMENTS[what](Path(store.location) / LEASE, outside, b"")
    before = tree(outside)
    with pytest.raises(DamagedObject if call in READING else RepositoryError, match=f"{LEASE} is .* and not a file"):
        {**READING, **CHANGING}[call](store)
    assert tree(outside) == before
    assert os.path.lexists(f"{store.location}/{LEASE}")


@pytest.mark.parametrize("what", ["link", "pipe", "device"])
@pytest.mark.parametrize("call", ["get", "get_range"])
def test_a_file_replaced_just_before_it_is_opened_is_not_read(
    call: str, what: str, store: DirectoryStore, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to the directory can exchange a file just after it was looked at."""
    store.put(LEASE, b"x")
    look = folders.status

    def exchanged(*arguments: object) -> os.stat_result:
        found = look(*arguments)  # type: ignore[arg-type]
        REPLACEMENTS[what](Path(store.location) / LEASE, outside, b"")
        return found

    monkeypatch.setattr(folders, "status", exchanged)
    with pytest.raises(RepositoryError, match=f"Cannot read .*{LEASE}"):
        READING[call](store)


def test_an_object_takes_the_place_of_a_link_and_nothing_is_written_behind_it(
    store: DirectoryStore, outside: Path
) -> None:
    store.put(LEASE, b"old")
    _link(Path(store.location) / LEASE, outside, b"")
    before = tree(outside)
    assert not store.put(LEASE, b"new", replace=False)
    assert store.put(LEASE, b"new")
    assert store.get(LEASE) == b"new"
    assert tree(outside) == before


def test_a_folder_replaced_by_a_link_during_an_upload_is_not_followed(store: DirectoryStore, outside: Path) -> None:
    for link in ("packs", "packs/aa", "tmp"):
        store.put(OTHER_PACK, b"x")
        upload = store.upload(PACK)
        upload.write([b"data"], 0)
        moved = outside.parent / f"moved-{link.replace('/', '-')}"
        os.rename(f"{store.location}/{link}", moved)
        os.symlink(outside, f"{store.location}/{link}")
        before = tree(outside)
        with pytest.raises(RepositoryError, match="is a symbolic link and not a folder"):
            upload.commit()
        upload.abandon()
        assert tree(outside) == before
        os.unlink(f"{store.location}/{link}")
        shutil.rmtree(moved)


def test_a_folder_for_temporary_files_that_is_a_link_is_not_swept(store: DirectoryStore, outside: Path) -> None:
    os.mkdir(store.location)
    (outside / names.temporary(socket.gethostname(), "0" * 16)).write_bytes(b"precious")
    os.symlink(outside, f"{store.location}/tmp")
    before = tree(outside)
    store.sweep()
    assert tree(outside) == before


def test_a_sweep_takes_only_files_of_its_own_names(store: DirectoryStore, outside: Path) -> None:
    store.put(LEASE, b"x")
    folder, own = Path(store.location) / "tmp", names.temporary(socket.gethostname(), "")
    (folder / f"{own}{'1' * 16}").symlink_to(outside / Path(LEASE).name)
    os.mkfifo(folder / f"{own}{'2' * 16}")
    for name in (f"{own}{'3' * 16}", f"{own}abcdefg_", f"{own}precious.txt", "other-" + "4" * 16):
        (folder / name).write_bytes(b"x")
    before = tree(outside)
    store.sweep()
    assert {each.name for each in folder.iterdir()} == {
        f"{own}{'1' * 16}",
        f"{own}{'2' * 16}",
        f"{own}precious.txt",
        "other-" + "4" * 16,
    }
    assert tree(outside) == before


def test_deleting_an_object_that_has_another_name_on_the_host_leaves_that_alone(
    store: DirectoryStore, outside: Path
) -> None:
    store.put(LEASE, b"x")
    os.link(f"{store.location}/{LEASE}", outside / "other")
    store.put(LEASE, b"new")
    assert (outside / "other").read_bytes() == b"x"
    os.unlink(f"{store.location}/{LEASE}")
    os.link(outside / "other", f"{store.location}/{LEASE}")
    store.delete(LEASE)
    assert (outside / "other").read_bytes() == b"x"


@pytest.mark.parametrize("umask", [0, 0o077, 0o777], ids=oct)
def test_stored_objects_are_unreadable_for_other_users_under_any_umask(umask: int, store: DirectoryStore) -> None:
    before = os.umask(umask)
    try:
        store.put(PACK, b"x")
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(store.location)): stat.S_IMODE(path.stat().st_mode)
        for path in Path(store.location).rglob("*")
    }
    assert modes == {"packs": 0o700, "packs/aa": 0o700, PACK: 0o600, "tmp": 0o700}


def test_the_directory_itself_may_be_a_link_for_the_user_named_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "named").symlink_to("real")
    store = DirectoryStore(str(tmp_path / "named"))
    store.put(PACK, b"x")
    assert (store.get(PACK), list(store.list("packs"))) == (b"x", [PACK])
    assert (tmp_path / "real" / PACK).read_bytes() == b"x"


def test_no_handle_is_left_open(store: DirectoryStore, outside: Path) -> None:
    store.put(LEASE, b"x")
    os.symlink(outside, f"{store.location}/packs")
    before = os.listdir("/proc/self/fd")
    for _turn in range(3):
        store.put(LEASE, b"x")
        for call in (*READING.values(), *CHANGING.values()):
            with contextlib.suppress(ObjectMissing):
                call(store)
        for act in (lambda: store.get(PACK), lambda: list(store.list("packs")), lambda: store.put(PACK, b"x")):
            with pytest.raises(RepositoryError):
                act()
    assert os.listdir("/proc/self/fd") == before


def test_objects_come_and_go_in_one_folder_whoever_takes_it_along(store: DirectoryStore) -> None:
    """Each delete takes the empty folder along, so that those who write meet one that vanishes at any step."""

    def come_and_go(number: int) -> int:
        own = DirectoryStore(store.location)
        for turn in range(150):
            name = f"leases/{number:08x}{turn:08x}"
            assert own.put(name, b"x")
            assert own.get(name) == b"x"
            own.delete(name)
        return number

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(come_and_go, range(3))) == list(range(3))
    assert list(store.list("leases")) == []


def test_a_foreign_file_is_named_once_and_a_leftover_of_an_nfs_client_is_not(store: DirectoryStore) -> None:
    store.put(PACK, b"x")
    folder = Path(store.location) / "packs"
    for name in ("aa/.nfs000001", "aa/notes", "README", "zz"):
        (folder / name).write_bytes(b"x")
    (folder / "link").symlink_to("/")
    for _turn in range(2):
        assert list(store.list("packs")) == [PACK]
    told = [
        f"'packs/{name}' in {store.location} is not an object of a repository and was skipped. Remove it."
        for name in ("README", "aa/notes", "link", "zz")
    ]
    assert store.foreign.words() == told
    for number in range(50):
        (folder / f"more{number}").write_bytes(b"x")
    list(store.list("packs"))
    assert len(store.foreign.words()) == 21


@pytest.mark.parametrize("call", ["list", "entries"])
@pytest.mark.parametrize("what", ["objects", "folders", "foreign files"])
def test_an_endless_folder_listing_is_an_error_before_it_fills_memory(
    what: str, call: str, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("_cbt.repository.stores.base.MOST_LISTED", 20)
    store.put(names.pack(bytes(16)), b"x")
    handed_out = 0

    def endless(_folder: int, _with_status: bool = False) -> Iterator[folders.Seen]:
        nonlocal handed_out
        while handed_out < 1000:  # stands for an end that never comes
            number, handed_out = handed_out, handed_out + 1
            yield {
                "objects": folders.Seen(f"{number:032x}", False, True, os.stat(store.location)),
                "folders": folders.Seen(f"{number:02x}"[-2:], True, False),
                "foreign files": folders.Seen(f"foreign-{number}", False, True),
            }[what]

    monkeypatch.setattr(folders, "contents", endless)
    folder = "packs/00" if what == "objects" else "packs"
    with pytest.raises(
        RepositoryError, match=f"Cannot list {folder}.* in {store.location}: more than 20 objects are there"
    ):
        list(getattr(store, call)(folder))
    assert handed_out < 100
