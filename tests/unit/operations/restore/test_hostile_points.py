# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a repository says, a restore writes into ``dest`` only, no more than the disk is large, and ends in words."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
import resource
import signal
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest
from hostile import DEEP, KERNEL, SIZE, TREE, XML, Enemy, text_of
from samples import UUID, point, point_id, record
from stores_for_tests import MemoryStore

from _cbt.errors import CbtError, DamagedObject, Refused
from _cbt.operations.point.machine_files import LARGEST, PIECE
from _cbt.operations.restore import machine, saved_machine
from _cbt.operations.restore.disk_writer import sweep
from _cbt.operations.restore.plan import LONGEST_NAME, make_plan, path_in
from _cbt.operations.restore.restore import MachineOptions, RestoreRequest, RestoreResult, restore
from _cbt.repository.format import manifests, names
from _cbt.repository.repository import Listing, Repository

connection = pytest.importorskip("_cbt.hypervisor.connection")

ENDS_WITHIN = 30  # seconds of one restore
MOST_MEMORY = 300 << 20  # bytes on top of what the tests need themselves


class Trial:
    """A folder to restore into, and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dest, self.outside = folder, folder / "deep/dest", folder / "outside"
        self.dest.mkdir(parents=True)
        self.outside.mkdir()
        self.enemy = Enemy(self.repository())

    def repository(self) -> Repository:
        """A fresh one; the store keeps what is in it."""
        if not hasattr(self, "store"):
            self.store = MemoryStore()
        return Repository(self.store, "00" * 16)

    def around(self) -> list[tuple[str, int]]:
        """All that is not in ``dest``."""
        found = itertools.chain.from_iterable(
            ((folder, *(f"{folder}/{name}" for name in files)) for folder, _below, files in os.walk(self.folder))
        )
        return sorted(
            (path, os.lstat(path).st_mtime_ns)
            for path in found
            if not path.startswith(f"{self.dest}") and path != f"{self.dest.parent}"
        )

    def restore(self, session: Any, check_only: bool = False, **fields: Any) -> RestoreResult | str:
        """Restore, and return the outcome, or the error in words; nothing else may come of it, and nothing may be left behind."""
        machine = MachineOptions() if session is not None else None
        before = self.around()
        request = RestoreRequest(**{"domain": UUID, "dest": str(self.dest), "machine": machine, "workers": 1, **fields})
        outcome: RestoreResult | str
        with _alarm():
            try:
                outcome = restore(self.repository(), request, session, check_only=check_only)
            except CbtError as error:
                outcome = str(error)
        assert self.around() == before, outcome
        left = list(self.dest.iterdir())
        if isinstance(outcome, str) or check_only:
            assert left == [], outcome
        else:
            self._check(left, outcome, session)
        if isinstance(outcome, str):
            assert len(outcome) < 2000 and not re.search("[\0-\x08\x0b-\x1f]", outcome), outcome[:3000]
        return outcome

    def _check(self, left: list[Path], outcome: RestoreResult, session: Any) -> None:
        for path in left:
            status = path.lstat()
            assert stat.S_ISREG(status.st_mode) and status.st_mode & 0o7022 == 0, (path, oct(status.st_mode))
            if "-vda." in path.name:
                assert status.st_blocks * 512 <= SIZE + (1 << 21) and (
                    path.suffix != ".raw" or path.read_bytes() == self.enemy.content
                )
            else:
                assert path.read_bytes() in (KERNEL, TREE)
            path.unlink()
        if session is not None and outcome.machine is not None:
            session.domain(outcome.machine.uuid).api.undefine()


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def late(*_arguments: object) -> None:
        raise TimeoutError(f"a restore did not end within {ENDS_WITHIN} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(ENDS_WITHIN)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


@pytest.fixture
def session() -> Iterator[Any]:
    """libvirt's own test driver, which has a domain ``test`` and defines others."""
    with connection.connect("test:///default") as made:
        yield made


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Fails a test that needs much memory."""

    def kib(field: str) -> int:
        return int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0])

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kib("VmRSS")
    yield
    assert (kib("VmHWM") - before) << 10 < MOST_MEMORY


def test_the_honest_point_is_restored_and_defined(trial: Trial, session: Any) -> None:
    """Else the others would show nothing."""
    trial.enemy.publish(trial.enemy.manifest())
    assert isinstance(trial.restore(None, format="raw"), RestoreResult)
    made = trial.restore(session)
    assert isinstance(made, RestoreResult) and made.machine is not None, made
    assert [file.saved.kind for file in made.machine.files] == ["kernel", "dtb"]


INDEX_LEAVES = list(hostile.leaves(Enemy(Repository(MemoryStore(), "00" * 16)).index()))
MANIFEST_LEAVES = list(hostile.leaves(Enemy(Repository(MemoryStore(), "00" * 16)).manifest()))


@pytest.mark.parametrize("place", INDEX_LEAVES, ids=lambda place: "/".join(map(str, place)))
def test_no_value_of_the_index_of_files_leads_out(place: tuple[Any, ...], trial: Trial, session: Any) -> None:
    for value in hostile.values(str(trial.outside)).values():
        index = text_of(hostile.changed(trial.enemy.index(), place, value))
        trial.enemy.publish(trial.enemy.manifest(trial.enemy.files(index)))
        trial.restore(session, check_only=True)
        trial.restore(session, format="raw")


@pytest.mark.parametrize("place", MANIFEST_LEAVES, ids=lambda place: "/".join(map(str, place)))
def test_no_value_of_a_manifest_leads_out(place: tuple[Any, ...], trial: Trial, session: Any) -> None:
    honest = trial.enemy.manifest()
    for value in hostile.values(str(trial.outside)).values():
        body = hostile.changed(honest, place, value)
        name = f"points/{body['uuid']}/{body['id']}/manifest.json"  # a manifest that is elsewhere than it says is not taken at all
        trial.enemy.publish(body, name)
        # Otherwise it cannot be asked for.
        known = isinstance(body["uuid"], str) and body["uuid"].isprintable() and len(body["uuid"]) < 1000
        asked = body["uuid"] if known else UUID
        trial.restore(None, domain=asked, format="raw")
        trial.restore(session, domain=asked, force=True)
        trial.store.objects.pop(name)


@pytest.mark.parametrize("key", ["domain.xml", "machine.json", "kernel.0"])
def test_no_key_of_the_files_of_a_manifest_leads_out(key: str, trial: Trial, session: Any) -> None:
    honest = trial.enemy.manifest()
    for value in (each for each in hostile.values(str(trial.outside)).values() if isinstance(each, str)):
        body = hostile.changed(honest, ("files", value), honest["files"][key])
        trial.enemy.publish(body)
        trial.restore(session)


def _bomb() -> str:
    lines = "".join(f"<!ENTITY e{number} '{f'&e{number - 1};' * 10}'>" for number in range(1, 12))
    return f"<!DOCTYPE domain [<!ENTITY e0 'x'>{lines}]><domain><name>&e11;</name></domain>"


XMLS = {
    "no UTF-8": (b"<domain>\xff</domain>", "is not the XML of a domain"),
    "no XML": (b"{}", "is not the XML of a domain"),
    "nothing": (b"", "is not the XML of a domain"),
    "cut off": (XML.encode()[:-5], "is not the XML of a domain"),
    "NUL": (XML.replace("web1", "we\0b1").encode(), "is not the XML of a domain"),
    "of something else": (b"<network/>", "is not the XML of a domain (its outermost element is 'network')"),
    "entities": (_bomb().encode(), "it declares a document type"),
    "a file of the host": (
        b"<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><domain><name>&e;</name></domain>",
        "it declares a document type",
    ),
    "deep": (b"<domain>" + b"<a>" * 10_000 + b"</a>" * 10_000 + b"</domain>", "too deep"),
    "large": (b"<domain>" + b" " * (4 << 20) + b"</domain>", "cannot be of"),
}


@pytest.mark.parametrize("key", ["domain.xml", "inactive.xml"])
@pytest.mark.parametrize(("content", "message"), XMLS.values(), ids=XMLS.keys())
def test_an_invalid_configuration_is_named(content: bytes, message: str, key: str, trial: Trial, session: Any) -> None:
    trial.enemy.publish(trial.enemy.manifest({**trial.enemy.files(), key: content}))
    said = trial.restore(session)
    assert isinstance(said, str) and f"{key} is damaged" in said and message in said, said


@pytest.mark.parametrize("key", ["domain.xml", "inactive.xml"])
def test_a_configuration_that_is_missing_is_named(key: str, trial: Trial, session: Any) -> None:
    files = trial.enemy.files()
    del files[key]
    trial.enemy.publish(trial.enemy.manifest(files))
    said = trial.restore(session)
    assert isinstance(said, str) and f"its manifest names no {key}" in said, said


def test_a_configuration_with_a_name_of_100_000_characters_and_guest_json_that_is_none_are_restored(
    trial: Trial, session: Any
) -> None:
    files = {**trial.enemy.files(), "guest.json": b"\xff{", "inactive.xml": XML.replace("web1", "x" * 100_000).encode()}
    trial.enemy.publish(trial.enemy.manifest(files))
    made = trial.restore(session)
    assert isinstance(made, RestoreResult) and made.machine is not None and made.machine.name == "web1"


def _entry(**fields: Any) -> Any:
    return lambda enemy: {"files": [{**enemy.index()["files"][0], **fields}, enemy.index()["files"][1]]}


INDEXES = {
    "no JSON": (lambda _enemy: b"{", "is damaged"),
    "no text": (lambda _enemy: b"\xff\xfe", "is damaged"),
    "a list": (lambda _enemy: [], "holds no list of a machine's files"),
    "deep": (lambda _enemy: {"files": DEEP}, "is damaged"),
    "a number of 100,000 digits": (lambda _enemy: b'{"files":' + b"9" * 100_000 + b"}", "a longer number"),
    "a size of 900 digits": (_entry(size=int("9" * 900)), "size or mode of its kernel is not valid"),
    "large": (lambda _enemy: b" " * (1 << 19), "cannot be of"),
    "1,000 files": (lambda enemy: {"files": enemy.index()["files"][:1] * 1000}, "names a kind of file twice"),
    "a kind twice": (lambda enemy: {"files": enemy.index()["files"][:1] * 2}, "names a kind of file twice"),
    "a kind that is a path": (_entry(kind="../x"), "is not a kind of machine file"),
    "one piece a hundred times": (_entry(pieces=["kernel.0"] * 100), "the pieces of its kernel"),
    "one piece twice": (_entry(pieces=["kernel.0"] * 2, size=2 * len(KERNEL)), "other names"),
    "another file's piece": (_entry(pieces=["dtb.0"]), "other names"),
    "a piece that the manifest lacks": (
        _entry(pieces=["kernel.0", "kernel.1"], size=2 * PIECE),
        "the manifest lacks a piece",
    ),
    "a size beyond all": (_entry(size=LARGEST["kernel"] + 1), "size or mode of its kernel is not valid"),
    "a mode of true": (_entry(mode=True), "a field of a file is missing or of a wrong type"),
    "a mode of a text": (_entry(mode="0"), "a field of a file is missing or of a wrong type"),
    "a mode that is too large": (_entry(mode=0o10000), "size or mode of its kernel is not valid"),
    "a path with NUL": (_entry(path="/k\0"), "the path of its kernel is not valid"),
    "a long owner": (_entry(owner="o" * 256), "the owner of its kernel is not valid"),
    "pieces that are a text": (_entry(pieces="kernel.0"), "a field of a file is missing or of a wrong type"),
    "a file without fields": (lambda _enemy: {"files": [{}]}, "a field of a file is missing or of a wrong type"),
    "less than its pieces": (_entry(size=7), "its pieces do not match what was saved"),
    "more than its pieces": (_entry(size=PIECE), "its pieces do not match what was saved"),
    "another checksum": (_entry(sha256="00" * 32), "its pieces do not match what was saved"),
}


@pytest.mark.parametrize(("index", "message"), INDEXES.values(), ids=INDEXES.keys())
def test_an_invalid_index_of_files_is_named_and_nothing_is_written(
    index: Any, message: str, trial: Trial, session: Any
) -> None:
    made = index(trial.enemy)
    trial.enemy.publish(trial.enemy.manifest(trial.enemy.files(made if isinstance(made, bytes) else text_of(made))))
    said = trial.restore(session)
    assert isinstance(said, str) and message in said and "restore point" in said, said


def test_a_piece_that_inflates_beyond_what_a_piece_can_be_is_damaged(trial: Trial, session: Any) -> None:
    bomb = zlib.compress(bytes(64 << 20))
    index = _entry(size=64 << 20, sha256=hashlib.sha256(bytes(64 << 20)).hexdigest())(trial.enemy)
    trial.enemy.publish(trial.enemy.manifest({**trial.enemy.files(text_of(index)), "kernel.0": bomb}))
    said = trial.restore(session)
    assert isinstance(said, str) and "is not one piece" in said, said


def test_a_file_with_more_pieces_than_its_size_allows_is_refused(trial: Trial, session: Any) -> None:
    pieces = {f"kernel.{number}": zlib.compress(b"k") for number in range(40)}
    saved = {"size": 40, "sha256": hashlib.sha256(b"k" * 40).hexdigest(), "pieces": list(pieces)}
    trial.enemy.publish(trial.enemy.manifest({**trial.enemy.files(text_of(_entry(**saved)(trial.enemy))), **pieces}))
    said = trial.restore(session)
    assert isinstance(said, str) and "the pieces of its kernel are not those of 40 bytes" in said, said


def test_no_byte_is_written_beyond_the_size_of_a_file(trial: Trial, tmp_path: Path) -> None:
    """The piece is longer than what the file has left. A limit of the system would show that it was written."""
    trial.enemy.publish(trial.enemy.manifest(trial.enemy.files(text_of(_entry(size=7)(trial.enemy)))))
    repository = trial.repository()
    (made,) = repository.points_of().points
    saved, _tree = saved_machine.saved_files(repository, made)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7, before[1]))
    try:
        with pytest.raises(DamagedObject, match="its pieces do not match what was saved"):
            saved_machine.write_file(repository, made, saved, str(tmp_path / "kernel"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "kernel").stat().st_size == 0


def test_a_piece_that_is_gone_is_named(trial: Trial, session: Any) -> None:
    trial.enemy.publish(trial.enemy.manifest())
    trial.store.objects.pop(f"points/{UUID}/{point_id(1)}/kernel.0")
    said = trial.restore(session)
    assert isinstance(said, str) and "kernel.0" in said, said


def test_files_for_which_there_is_no_space_are_refused_before_anything_is_written(
    trial: Trial, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.enemy.publish(trial.enemy.manifest())
    real = os.statvfs(trial.dest)
    needed = 2 * 65536 + len(KERNEL) + len(TREE)  # of a raw image and the files

    class Usage:
        f_frsize = 1
        f_bavail = needed - 1
        f_blocks = needed

    monkeypatch.setattr(os, "statvfs", lambda _path: Usage)
    said = trial.restore(session, format="raw")
    assert isinstance(said, str) and "are needed and" in said, said
    Usage.f_bavail = needed
    assert isinstance(trial.restore(session, format="raw"), RestoreResult)
    assert real.f_frsize


IMAGES = {
    "clusters of 100 bytes": {"cluster-size": 100},
    "clusters of 4 GiB": {"cluster-size": 1 << 32},
    "clusters of no number": {"cluster-size": "65536"},
    "clusters of a float": {"cluster-size": 65536.0},
    "clusters of true": {"cluster-size": True},
    "clusters of a list": {"cluster-size": [65536]},
    "extended L2 of small clusters": {"extended-l2": True, "cluster-size": 4096},
    "extended L2 of text": {"extended-l2": "yes"},
    "lazy refcounts of a number": {"lazy-refcounts": 1},
    "a compression that is none": {"compression-type": "rot13"},
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES.keys())
def test_an_image_unsuitable_for_qcow2_is_refused_and_accepted_as_raw(image: dict[str, Any], trial: Trial) -> None:
    body = trial.enemy.manifest()
    body["disks"][0]["image"].update(image)
    trial.enemy.publish(body)
    said = trial.restore(None)
    assert isinstance(said, str) and "like the original: qcow2 " in said and "format: raw" in said, said
    assert isinstance(trial.restore(None, format="raw"), RestoreResult)


@pytest.mark.parametrize("mode", [0o4755, 0o6777, 0o666, 0o1777, 0o600])
def test_no_mode_in_a_repository_lets_others_write_or_changes_the_user(mode: int, trial: Trial, session: Any) -> None:
    trial.enemy.publish(trial.enemy.manifest(trial.enemy.files(text_of(_entry(mode=mode)(trial.enemy)))))
    assert isinstance(trial.restore(session), RestoreResult)  # the trial looks at the modes


@pytest.mark.parametrize("owner", ["no-such-user", "x" * 255, "-1", "0", "a\x1bb", "\udcff"])
def test_an_owner_that_this_host_does_not_know_is_a_warning(owner: str, trial: Trial, session: Any) -> None:
    trial.enemy.publish(trial.enemy.manifest(trial.enemy.files(text_of(_entry(owner=owner, group=owner)(trial.enemy)))))
    made = trial.restore(session)
    assert isinstance(made, RestoreResult)
    if os.geteuid() == 0:
        assert (
            len(made.warnings) == 1
            and "kernel of the machine belongs to root: this host has no user" in made.warnings[0]
        )
        assert "\x1b" not in made.warnings[0] and len(made.warnings[0]) < 1000


# By themselves, as each is a second proof of the same.


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "..", ".", "", "a/b", "a/", "a\0b"])
def test_what_is_made_from_dest_is_directly_in_it(name: str) -> None:
    for folder in ("/r", "/r/", "/r/s/..", "/"):
        with pytest.raises(Refused):
            path_in(folder, name)


@pytest.mark.parametrize("folder", ["/r", "/r/", "/r/./s", "/", "//r"])
def test_a_plain_name_is_used_unchanged(folder: str) -> None:
    assert path_in(folder, "größe 1-vda.raw") == os.path.join(folder, "größe 1-vda.raw")
    assert path_in(folder, "x" * LONGEST_NAME)
    with pytest.raises(Refused, match="too long for a file"):
        path_in(folder, "x" * (LONGEST_NAME + 1))


def test_a_new_name_that_is_a_path_is_refused() -> None:
    with pytest.raises(Refused, match="not a valid file name"):
        make_plan(point(1), RestoreRequest("web1", dest="/r", new_name="/etc/x"))


WRONG_POINTS = {
    "domain": {"domain": "/etc/cron.d/x"},
    "uuid": {"uuid": "../x"},
    "id": {"id": "x"},
    "target": {"disks": (record("../vda"),)},
    "long target": {"disks": (record("v" * 40),)},
    "size": {"disks": (record("vda", 1 << 60),)},
    "negative size": {"disks": (record("vda", -1),)},
    "one disk twice": {"disks": (record("vda"), record("vda"))},
    "map": {"disks": (record("vda", map=dataclasses.replace(record("vda").map, name="../vda.map")),)},
    "file": {"files": {"domain.xml": dataclasses.replace(record("vda").map, name="../../x")}},
    "key": {"files": {"../../x": record("vda").map}},
}


@pytest.mark.parametrize("fields", WRONG_POINTS.values(), ids=WRONG_POINTS.keys())
def test_a_restore_asks_for_each_name_itself(fields: dict[str, Any]) -> None:
    manifests.check(point(1))
    with pytest.raises(DamagedObject):
        manifests.check(dataclasses.replace(point(1), **fields))


def test_a_restore_asks_before_it_decides_anything(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a manifest be let through when it is read."""
    evil = dataclasses.replace(point(1), domain=f"{trial.outside}/evil")
    monkeypatch.setattr(Repository, "points_of", lambda *_arguments: Listing((evil,), {}))
    said = trial.restore(None)
    assert isinstance(said, str) and "is not the name of a domain" in said, said


def test_kinds_have_a_largest_size_each() -> None:
    assert set(LARGEST) == set(names.MACHINE_FILE_KINDS)


# What others plant in ``dest``.


def test_links_and_pipes_planted_in_dest_are_neither_followed_nor_waited_for(trial: Trial) -> None:
    trial.enemy.publish(trial.enemy.manifest())
    secret = trial.outside / "secret"
    secret.write_bytes(b"precious")
    final = trial.dest / "web1-vda.raw"
    (trial.dest / "web1-vda.raw.partial-00000001").symlink_to(secret)
    os.mkfifo(trial.dest / "web1-vda.raw.partial-00000002")
    final.symlink_to(secret)
    with _alarm():
        sweep(str(final))
        with pytest.raises(Refused, match="exists already"):
            restore(trial.repository(), RestoreRequest(UUID, dest=str(trial.dest), format="raw"), None)
        restore(trial.repository(), RestoreRequest(UUID, dest=str(trial.dest), format="raw", force=True), None)
    assert secret.read_bytes() == b"precious" and secret.stat().st_nlink == 1
    assert not final.is_symlink() and final.read_bytes() == trial.enemy.content


def test_a_link_in_the_place_of_the_finished_image_is_not_followed(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can write to ``dest`` exchanges the image just before it gets its name."""
    trial.enemy.publish(trial.enemy.manifest())
    secret = trial.outside / "secret"
    secret.write_bytes(b"precious")
    real = os.link

    def exchanged(source: str, final: str, **options: Any) -> None:
        os.unlink(source)
        os.symlink(secret, source)
        real(source, final, **options)

    monkeypatch.setattr(os, "link", exchanged)
    restore(trial.repository(), RestoreRequest(UUID, dest=str(trial.dest), format="raw"), None)
    assert secret.stat().st_nlink == 1


# What libvirt is given.


@pytest.mark.parametrize("trust", [True, False])
def test_libvirt_is_given_what_adapting_returned_and_nothing_else(
    trust: bool, trial: Trial, session: Any, monkeypatch: Any
) -> None:
    returned: list[Any] = []
    given: list[str] = []
    adapt, define = machine.adapt, connection.libvirt.virConnect.defineXML

    def adapting(*arguments: Any) -> Any:
        returned.append(adapt(*arguments))
        return returned[-1]

    def defining(api: Any, xml: str) -> Any:
        given.append(xml)
        return define(api, xml)

    monkeypatch.setattr(machine, "adapt", adapting)
    monkeypatch.setattr(connection.libvirt.virConnect, "defineXML", defining)
    files = trial.enemy.files()
    files["inactive.xml"] = XML.replace(
        "<devices>", "<seclabel type='none'/><devices><emulator>/evil</emulator>"
    ).encode()
    trial.enemy.publish(trial.enemy.manifest(files))
    made = trial.restore(session, machine=MachineOptions(trust_definition=trust))
    assert isinstance(made, RestoreResult) and made.machine is not None
    assert given == [each.xml for each in returned] and len(given) == 1 and made.machine.changes == returned[0].changes
    assert ("seclabel" in given[0], "/evil" in given[0]) == (trust, False)  # there is no such emulator here


def test_nothing_is_asked_or_written_before_a_definition_is_refused(
    trial: Trial, session: Any, monkeypatch: Any
) -> None:
    files = trial.enemy.files()
    files["inactive.xml"] = XML.replace(
        "<devices>", "<devices><hostdev mode='subsystem' type='usb'/><shmem name='x'/>"
    ).encode()
    trial.enemy.publish({**trial.enemy.manifest(files), "host": os.uname().nodename})
    monkeypatch.setattr(os, "mkdir", lambda *_arguments: pytest.fail("a folder was made"))
    for check_only in (True, False):
        said = trial.restore(session, check_only=check_only)  # the trial looks into the folders
        assert isinstance(said, str) and "hostdev mode=subsystem type=usb" in said and "shmem name=x" in said, said


# What is said when libvirt refuses the domain.


@pytest.mark.parametrize("force", [True, False])
def test_the_message_about_a_refused_domain_is_true(force: bool, trial: Trial, session: Any) -> None:
    files = trial.enemy.files()
    files["inactive.xml"] = XML.replace("<memory>1024</memory>", "<memory>none</memory>").encode()
    trial.enemy.publish(trial.enemy.manifest(files))
    before = trial.dest / "web1-kernel"
    if force:
        before.write_bytes(b"older")
    request = RestoreRequest(UUID, dest=str(trial.dest), machine=MachineOptions(), force=force)
    with pytest.raises(CbtError, match="define web1") as caught:
        restore(trial.repository(), request, session)
    left = sorted(str(path) for path in trial.dest.iterdir())
    assert ("Nothing was restored." in str(caught.value)) == (left == []) == (not force)
    assert all(path in str(caught.value) for path in left)
