"""Objects made by somebody who can make their checksums: any field may hold anything, and the host is not harmed.

Whatever a manifest, a map or any other object says, no byte is written outside of the repository, little memory is taken, and only errors
of the engine come of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_history import EngineHistory
from every_object import bounded_run, full_history, removed
from histories import KEYS
from samples import UUID, pack_ref, point, record
from stores_for_tests import MemoryStore

from _cbt.control import Control
from _cbt.errors import CbtError, DamagedObject, Refused, RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.operations import info
from _cbt.operations.backup import preparation
from _cbt.operations.copy import CopyRequest, copy
from _cbt.operations.point.new_point import NewPoint, StoringOptions
from _cbt.operations.upkeep.live_blocks import live_blocks
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.operations.verify.findings import Findings
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.crypto.keys import PlainKeys
from _cbt.repository.dedup import dedup
from _cbt.repository.format import envelope, hooks, manifests, maps, names
from _cbt.repository.format.manifests import LARGEST_DISK, RestorePoint
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import condemned, holds, leases, trash
from _cbt.repository.stores.base import LATEST
from _cbt.repository.stores.directory import DirectoryStore

SECONDS = 120


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little memory, and an end. What is stored need not outlast a loss of power."""

    monkeypatch.setattr(os, "fsync", lambda _handle: None)
    with bounded_run(SECONDS):
        yield


@pytest.fixture(scope="module", params=KEYS)
def made(request: pytest.FixtureRequest) -> Iterator[EngineHistory]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield full_history(request.param, monkeypatch)


DEEP = json.loads("[" * 300 + "]" * 300)  # as deep as Python can be asked to write it again
STRINGS = (
    "../../../../outside/x",
    "/outside/x",
    "..",
    ".",
    "",
    "a\0b",
    "a\x1b[2Jb",
    "a\nb",
    "x" * 100_000,
    "vda/../../x",
    "manifest.json",
)
NUMBERS = (-1, 1 << 63, 1 << 200, 0)


def hostile(value: object) -> Iterator[object]:
    """What may stand in the place of a value of this type, and then in the place of any value within it."""
    if isinstance(value, bool):
        yield 2
    elif isinstance(value, str):
        yield from STRINGS
        yield DEEP
    elif isinstance(value, int | float):
        yield from NUMBERS
    elif isinstance(value, list):
        yield from ([], value * 2, value * 10_000, DEEP)
        yield from (
            [*value[:index], odd, *value[index + 1 :]] for index, each in enumerate(value[:2]) for odd in hostile(each)
        )
    elif isinstance(value, dict):
        yield from ({}, DEEP)
        yield from ({**value, key: odd} for key, each in value.items() for odd in hostile(each))
        for key in list(value)[:2]:
            yield from (
                {**{other: each for other, each in value.items() if other != key}, odd: value[key]} for odd in STRINGS
            )
        yield {**value, **dict.fromkeys(map(str, range(100_000)), 1)}


def use(history: EngineHistory, root: Path) -> None:
    """Do what people do with a repository; only errors of the engine may come of it."""
    dest = Repository(DirectoryStore(str(root / "copy")), "22" * 16)
    request = RetentionRequest(Rules(last=1, within=None), undelete=(removed(history),), compact_below=99, grace=0.0)
    for act in (
        lambda: info.healths(history.fresh(), info.list_points(history.fresh())[0]),
        lambda: leases.lease_holders(history.fresh()),
        lambda: condemned.pending_deletion(history.fresh()),
        lambda: trash.removed(history.fresh()),
        lambda: holds.listed(history.fresh()),
        lambda: retention(history.fresh(), request, check_only=True),
        lambda: verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1, sample=50), record=False),
        lambda: copy(history.fresh(), dest, CopyRequest(options=StoringOptions(compression="none", workers=1))),
        lambda: retention(history.fresh(), RetentionRequest(compact_below=99, grace=0.0)),
        history.backup,
    ):
        with contextlib.suppress(CbtError):
            act()


def sealed_objects(history: EngineHistory) -> dict[str, str]:
    """An object of every kind that is JSON, by the name of the kind."""
    found: dict[str, str] = {}
    for name in sorted(history.store.objects):
        taken = names.parsed(name)
        if taken is None or taken.kind in (
            names.PACK_KIND,
            names.CONDEMNED_PACK_KIND,
            names.CONDEMNED_FILE_KIND,
            names.REPOSITORY_KIND,
        ):
            continue
        if history.fresh().keys.unseal(name, history.store.objects[name]).startswith(b'{"kvm.cbt"'):
            found[taken.kind.title] = name
    return found


OF_JSON = [
    "manifest",
    "draft",
    "trash entry",
    "lease",
    "deletion list",
    "record of the last collection",
    "record of damage",
    "verification",
]
OF_JSON += ["turn of a verification", "record of removed points", "hold"]


def test_every_kind_of_object_that_is_json_is_made_hostile(made: EngineHistory) -> None:
    assert set(sealed_objects(made)) == set(OF_JSON)


@pytest.mark.parametrize("kind", OF_JSON)
def test_no_content_of_an_object_harms_the_host(kind: str, made: EngineHistory, tmp_path: Path) -> None:
    whole, name = made.store, sealed_objects(made)[kind]
    keys = made.fresh().keys
    match = envelope._LINE.fullmatch(keys.unseal(name, whole.objects[name]))
    assert match is not None
    magic, body = match.group(1).decode(), json.loads(match.group(4))
    truth, disk, numbers, mark = dict(made.truth), set(made.disk.dirty), made.numbers, made.at_mark
    # A manifest is looked at closest.
    one_in = (1 if isinstance(keys, PlainKeys) else 8) * (6 if kind in ("draft", "trash entry") else 1)
    for number, odd in enumerate(hostile(body)):
        if not isinstance(odd, dict) or number % one_in:
            continue
        data = keys.seal(name, envelope.encode(magic, 1, odd))
        made.store = whole.copy()
        made.store.objects[name] = data
        made.store.clock += leases.LAPSE * (number % 2)
        if _is_refused(made, name, data) and number % 24:
            with contextlib.suppress(CbtError):
                made.fresh().points_of()
        else:
            use(made, tmp_path)
        made.store, made.truth, made.numbers, made.at_mark = whole, dict(truth), numbers, mark
        made.disk.dirty = set(disk)
    assert {each.name for each in tmp_path.iterdir()} <= {"copy", "cache"}
    for path in (tmp_path / "copy").rglob("*") if (tmp_path / "copy").exists() else ():
        relative = str(path.relative_to(tmp_path / "copy"))
        assert path.is_dir() or names.is_object(relative) or relative.startswith("tmp/"), (
            f"{relative} is no object of a repository"
        )


def _is_refused(history: EngineHistory, name: str, data: bytes) -> bool:
    """Whether a manifest is refused when it is decoded: then all that is done with it is done with others just as well."""
    taken = names.parsed(name)
    if taken is None or taken.kind not in (names.MANIFEST_KIND, names.TRASH_KIND, names.DRAFT_KIND):
        return False
    try:
        manifests.decode(history.fresh().keys.unseal(name, data), names.manifest_kept_by(name))
    except CbtError:
        return True
    return False


BAD_FIELDS = {
    "uuid": STRINGS,
    "id": STRINGS,
    "parent": STRINGS,
    "incremental_set": STRINGS,
    "repository": STRINGS,
    "domain": [each for each in STRINGS if each not in ("manifest.json",)],
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_a_manifest_with_an_invalid_name_is_damage(field: str) -> None:
    for value in BAD_FIELDS[field]:
        made = point(1, **{field: value})
        with pytest.raises(DamagedObject, match="is damaged: "):
            manifests.decode(manifests.encode(made), names.manifest(UUID, point(1).id))


@pytest.mark.parametrize(
    "name", ["web 1", "[web]", "wéb", "日本", "web;1", "$(web)", ".web", "-web", "w" * 255, "web\u2028"]
)
def test_a_domain_may_have_any_name_that_libvirt_takes(name: str) -> None:
    made = point(1, domain=name)
    assert manifests.decode(manifests.encode(made), names.manifest(UUID, made.id)) == made


def _point(**fields: object) -> RestorePoint:
    return point(1, (record(**fields),))  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [*STRINGS, "x" * 33, "vd a"])
def test_an_invalid_disk_target_is_damage(target: str) -> None:
    if target == "manifest.json":
        return
    made = _point(target=target)
    with pytest.raises(DamagedObject, match="is not the target of a disk"):
        manifests.decode(manifests.encode(made), names.manifest(UUID, made.id))


@pytest.mark.parametrize("size", [-1, LARGEST_DISK + 1, 1 << 63])
def test_an_impossible_disk_size_is_damage(size: int) -> None:
    made = _point(size=size)
    with pytest.raises(DamagedObject, match=f"disk vda cannot have {size} bytes"):
        manifests.decode(manifests.encode(made), names.manifest(UUID, made.id))


@pytest.mark.parametrize("name", [*STRINGS, "vdb.map", "vda-x.map", "domain.xml"])
def test_a_map_with_an_invalid_name_is_damage(name: str) -> None:
    made = _point(map=manifests.StoredFile(name, 3, "0" * 64))
    with pytest.raises(DamagedObject, match="is not the name of a map of vda"):
        manifests.decode(manifests.encode(made), names.manifest(UUID, made.id))


# Some file systems do not distinguish upper and lower case.
@pytest.mark.parametrize("name", [*STRINGS, "Manifest.json", "MANIFEST.JSON"])
@pytest.mark.parametrize("what", ["key", "object"])
def test_an_invalid_file_name_is_damage(what: str, name: str) -> None:
    file = manifests.StoredFile(name if what == "object" else "domain.xml", 3, "0" * 64)
    made = point(1, files={name if what == "key" else "domain.xml": file})
    with pytest.raises(DamagedObject, match="is not the name of a file of a restore point"):
        manifests.decode(manifests.encode(made), names.manifest(UUID, made.id))


def test_a_duplicate_name_is_damage() -> None:
    file = manifests.StoredFile("domain.xml", 3, "0" * 64)
    twice = point(1, files={"domain.xml": file, "inactive.xml": file})
    also_map = point(1, files={"x": manifests.StoredFile("vda.map", 3, "0" * 64)})
    same_disk = point(1, (record(), record(map=manifests.StoredFile("vda-2.map", 3, "0" * 64))))
    for made, told in ((twice, "object domain.xml"), (also_map, "object vda.map"), (same_disk, "disk vda")):
        with pytest.raises(DamagedObject, match=f"it names {told} twice"):
            manifests.decode(manifests.encode(made), names.manifest(UUID, made.id))


# JSON, as bytes.


def _object(body: bytes) -> bytes:
    digest = hashlib.sha256(b"lease 1 " + body).hexdigest().encode()
    return b'{"kvm.cbt":"lease","version":1,"sha256":"%s","body":%s}\n' % (digest, body)


@pytest.mark.parametrize("depth", [40, 10_000, 1_000_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_excessive_nesting_is_damage(depth: int, pair: tuple[bytes, bytes]) -> None:
    inner = pair[0] * depth + (b"" if pair[0] == b"[" else b"1") + pair[1] * depth
    with pytest.raises(DamagedObject, match="nested too deep|more values"):
        envelope.decode("lease", 1, _object(b'{"a":%s}' % inner), "leases/x")


def test_more_values_than_any_object_has_and_a_number_without_end_are_damage() -> None:
    for body in (b'{"a":[%s]}' % b",".join([b"0"] * (envelope.MOST_VALUES + 1)), b'{"a":%s}' % (b"9" * 1000)):
        with pytest.raises(DamagedObject, match="more values, or a longer number, than an object may have"):
            envelope.decode("lease", 1, _object(body), "leases/x")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-8-sig"])
def test_json_in_another_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(ValueError):
        envelope.parsed('{"a":1}'.encode(encoding))


def test_an_endless_number_in_another_encoding_is_not_parsed() -> None:
    body = ('{"a":' + "9" * 4000 + "}").encode("utf-16-le") + b" }"  # it begins and ends as an object must
    with pytest.raises(DamagedObject, match="cannot be read .*Expecting property name"):
        envelope.decode("lease", 1, _object(body), "leases/x")


# Maps.


def _map(head: tuple[int, int, int], columns: bytes, expected: int | None = None, version: int = 1) -> bytes:
    """A map whose header says this of the disk's size, packs and runs, its checksum right; zeroes follow ``columns`` up to ``expected`` bytes."""
    size, packs, runs = head
    header = maps.HEADER.pack(maps.MAGIC, version, 0, BLOCK_SIZE, size, packs, 0, runs)
    proof, engine, stored = hashlib.sha256(header), zlib.compressobj(1), []
    left, zeroes = (expected if expected is not None else len(columns)) - len(columns), bytes(1 << 22)
    for piece in [columns, *([zeroes] * (left >> 22)), zeroes[: left & (1 << 22) - 1]]:
        proof.update(piece)
        stored.append(engine.compress(piece))
    return header + proof.digest() + b"".join(stored) + engine.flush()


MAPS = {
    "runs without end": lambda: _map((LARGEST_DISK, 1, 9_000_000), b"", maps.PACK.size + 20 * 9_000_000),
    "packs without end": lambda: _map((LARGEST_DISK, 2_000_000, 2_000_000), b"", 48 * 2_000_000),
    "more runs than blocks": lambda: _map((BLOCK_SIZE, 1, 2), b"", maps.PACK.size + 40),
    "more packs than runs": lambda: _map((BLOCK_SIZE * 8, 2, 1), b"", 2 * maps.PACK.size + 20),
    "a header that asks for all": lambda: _map(((1 << 64) - 1, (1 << 32) - 1, (1 << 64) - 1), b""),
    "no packs but runs": lambda: _map((BLOCK_SIZE * 8, 0, 1), b"", 20),
    "a pack without end": lambda: _map(
        (BLOCK_SIZE, 1, 1), maps.PACK.pack(b"\1" * 16, (1 << 64) - 1, 1) + struct.pack("<QIII", 0, 1, 0, 0)
    ),
    "blocks without end": lambda: _map(
        (BLOCK_SIZE, 1, 1), maps.PACK.pack(b"\1" * 16, 1 << 20, (1 << 32) - 1) + struct.pack("<QIII", 0, 1, 0, 0)
    ),
    "a pack smaller than its directory": lambda: _map(
        (BLOCK_SIZE, 1, 1), maps.PACK.pack(b"\1" * 16, 60, 1) + struct.pack("<QIII", 0, 1, 0, 0)
    ),
    "a gap without end": lambda: _map(
        (BLOCK_SIZE, 1, 1), maps.PACK.pack(b"\1" * 16, 1 << 20, 1) + struct.pack("<QIII", (1 << 64) - 1, 1, 0, 0)
    ),
    "a run behind the disk": lambda: _map(
        (BLOCK_SIZE, 1, 1), maps.PACK.pack(b"\1" * 16, 1 << 20, 2) + struct.pack("<QIII", 0, 2, 0, 0)
    ),
    "a pack that is none of its": lambda: _map(
        (BLOCK_SIZE, 1, 1), maps.PACK.pack(b"\1" * 16, 1 << 20, 1) + struct.pack("<QIII", 0, 1, 1, 0)
    ),
    "an empty run": lambda: _map(
        (BLOCK_SIZE, 1, 1), maps.PACK.pack(b"\1" * 16, 1 << 20, 1) + struct.pack("<QIII", 0, 0, 0, 0)
    ),
    "more than it says": lambda: _map((BLOCK_SIZE, 0, 0), b"", 1 << 28),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", MAPS)
def test_an_impossible_map_is_damage(kind: str) -> None:
    data = MAPS[kind]()
    told = (
        "its header was changed"
        if kind in ("runs without end", "packs without end", "more runs than blocks", "more packs than runs")
        else "."
    )
    with pytest.raises(DamagedObject, match=told):
        maps.decode(data)
    if kind not in (
        "a gap without end",
        "a run behind the disk",
        "a pack that is none of its",
        "an empty run",
        "no packs but runs",
    ):
        with pytest.raises(DamagedObject, match=told):
            maps.decode_packs(data)


def test_a_map_of_another_disk_is_refused_before_it_is_unpacked() -> None:
    data = _map((LARGEST_DISK, 1, maps.MOST_RUNS), b"", maps.PACK.size + 20 * maps.MOST_RUNS)
    for decode in (maps.decode, maps.decode_packs):
        with pytest.raises(DamagedObject, match="it is of a disk of another size"):
            decode(data, 8 * BLOCK_SIZE)


def test_a_map_of_an_unknown_version_is_not_unpacked() -> None:
    with pytest.raises(RepositoryError, match="format 2"):
        maps.decode(_map((0, 0, 0), b"", 1 << 28, version=2))


def test_a_map_that_could_not_be_read_again_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = maps.MapBuilder(8 * BLOCK_SIZE)
    builder.put(0, 1, b"\0" * 15 + b"\1", 0)
    builder.put(4, 1, b"\0" * 15 + b"\1", 0)
    extents = builder.finish({pack_ref(1).id: pack_ref(1)})
    assert maps.decode(extents.encode()) == extents
    monkeypatch.setattr(maps, "MOST_RUNS", 1)
    with pytest.raises(CbtError, match="is stored in 2 pieces of 1 packs; the maximum is 1 and"):
        extents.encode()


def test_an_object_that_could_not_be_read_again_is_not_stored() -> None:
    repository = Repository(MemoryStore(), "00" * 16)
    with pytest.raises(CbtError, match="Cannot store leases/0{16}: it has 65537 bytes; the maximum is 65536"):
        repository.put_object(names.lease("0" * 16), bytes(65537))
    repository.put_object(names.lease("0" * 16), bytes(65536))
    assert len(repository.get_object(names.lease("0" * 16))) == 65536


def test_arbitrary_hook_content_misleads_no_backup(made: EngineHistory) -> None:
    name = names.hooks_of_run(UUID, f"20260101T120000Z-{9:08x}", 0)
    whole, keys = made.store, made.fresh().keys
    for packs, table in (
        (0, b""),
        ((1 << 32) - 1, b""),
        (1, hooks.PACK.pack(b"\1" * 16, 1 << 63, (1 << 32) - 1, 1) + bytes(8)),
    ):
        head = hooks.HEADER.pack(hooks.MAGIC, 1, 0, packs)
        made.store = whole.copy()
        made.store.objects[name] = keys.seal(name, head + hashlib.sha256(head + table).digest() + table)
        made.fresh()
        finding = dedup.deduplicator(made.repository, dedup.REPOSITORY, UUID, {})
        assert finding is not None
        with finding.finder() as find, contextlib.suppress(CbtError):
            find([bytes(32)])
        made.store = whole


# What is kept in mind of many objects.


def test_manifests_that_would_take_all_memory_are_an_error(
    made: EngineHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(made.fresh().points_of().points) == 3
    monkeypatch.setattr(manifests, "MOST_MANIFESTS", 20_000)
    with pytest.raises(RepositoryError, match="The manifests of the restore points take more than 0 MiB of memory"):
        made.fresh().points_of()
    monkeypatch.setattr(manifests, "MOST_MANIFESTS", 2_000)
    with pytest.raises(RepositoryError, match="The manifests of the restore points take more than"):
        trash.removed(made.fresh())


def test_more_packs_than_a_repository_holds_are_an_error(made: EngineHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_cbt.repository.sharing.survey.MOST_LISTED", 2)
    with pytest.raises(RepositoryError, match="name more than 2 packs or files"):
        retention(made.fresh(), RetentionRequest(), check_only=True)
    monkeypatch.undo()
    monkeypatch.setattr("_cbt.operations.upkeep.live_blocks.MOST_PACKS", 0)
    extents = made.fresh().read_map(made.repository.points_of().points[-1], "vda")
    with pytest.raises(RepositoryError, match="name more than 0 packs"):
        live_blocks([extents, extents], lambda _ref: True)


def test_damage_in_too_many_pieces_to_report_is_reported_for_the_whole_disk(
    made: EngineHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("_cbt.operations.verify.verify.MOST_RANGES", 0)
    whole = made.store
    made.store = whole.copy()
    for name in [each for each in made.store.objects if each.startswith("packs/")]:
        del made.store.objects[name]
    made.store.objects.setdefault("repository.json", b"")
    for level in ("data", "structure"):
        verdicts, _seconds = verify(made.fresh(), VerifyRequest(level=level, workers=1), record=False)
        (found,) = verdicts[0].damage
        assert (found.disk, found.offset, found.length, found.missing) == ("vda", 0, 8 * BLOCK_SIZE - 512, True)
        assert found.cause.startswith("more than 0 of its ranges are damaged, the first because: ")
    made.store = whole


def test_maps_that_do_not_agree_about_a_pack_and_packs_without_end_are_kept_in_mind_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    findings = Findings(Repository(MemoryStore(), "00" * 16))
    small, large = pack_ref(1, 3), pack_ref(1, 5)
    findings.sound_blocks(small)[2] = 1
    assert findings.sound_blocks(large) == b"\0\0\1\0\0"
    assert len(findings.sound_blocks(small)) == 5
    monkeypatch.setattr("_cbt.operations.verify.findings._NOTED", 5)
    findings.sound_blocks(pack_ref(2, 5))
    findings.sound_blocks(pack_ref(3, 5))
    assert findings.sound_blocks(large) == bytes(5), "what was noted before is read again"
    monkeypatch.setattr("_cbt.operations.verify.findings._MOST_UNREADABLE", 1)
    for number in (1, 2):
        findings.note_unreadable(pack_ref(number), "gone")
    findings.store()
    assert set(findings.recorded) == {pack_ref(1).id}


def test_a_name_that_could_not_be_read_back_is_refused_before_anything_is_stored(made: EngineHistory) -> None:
    for name in ("web\t1", "web\x1b1", "web/1"):
        with pytest.raises(Refused, match="its name contains control characters"):
            preparation.check_name(SimpleNamespace(name=name))  # type: ignore[arg-type]
    preparation.check_name(SimpleNamespace(name="web 1 [ä]"))  # type: ignore[arg-type]
    repository = made.fresh()
    before = dict(made.store.objects)
    with leases.held(repository, "backup") as lease:
        new = NewPoint(lease, point(9).key, StoringOptions(compression="none", workers=1), {}, Control())
        with pytest.raises(Refused, match="Cannot store the disk 'vd/a'"):
            new.read(made.disk, "vd/a", None)  # type: ignore[arg-type]
        for uuid, name in ((UUID, "../x"), ("..", point(9).id)):
            with pytest.raises(DamagedObject):
                NewPoint(lease, (uuid, name), StoringOptions(), {}, Control())
    assert made.store.objects == before


@pytest.mark.parametrize("since", [-1, 1 << 200, 1e400, float("nan"), 253_402_300_800])
def test_a_session_with_an_invalid_start_time_is_unknown(since: float, made: EngineHistory) -> None:
    whole, name = made.store, names.lease("0" * 16)
    made.store = whole.copy()
    body = {"host": "h", "process": 1, "operation": "backup", "since": since}
    made.fresh().put_object(name, envelope.encode("lease", 1, body))
    (found,) = [each for each in leases.lease_holders(made.repository) if each.id == "0" * 16]
    assert (found.operation, found.since) == ("unknown", 0.0)
    made.store = whole


@pytest.mark.parametrize(("told", "taken"), [(-1e12, 0.0), (1e300, LATEST), (1_700_000_000.5, 1_700_000_000.5)])
def test_a_time_without_a_valid_date_becomes_the_nearest_valid_date(
    told: float, taken: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(str(tmp_path))
    store.put(names.lease("0" * 16), b"")
    monkeypatch.setattr(
        "_cbt.repository.stores.folders.status", lambda *_arguments: SimpleNamespace(st_size=0, st_mtime=told)
    )
    assert store.modified(names.lease("0" * 16)) == taken
    assert datetime.datetime.fromtimestamp(taken, datetime.UTC).year < 10_000


@pytest.mark.parametrize("check_only", [True, False])
def test_a_damaged_point_is_named_by_a_copy_which_copies_the_others(check_only: bool, made: EngineHistory) -> None:
    whole = made.store
    made.store = whole.copy()
    first, *others = made.fresh().points_of().points
    name = names.manifest(first.uuid, first.id)
    made.repository.put_object(name, manifests.encode(dataclasses.replace(first, domain="../x")))
    dest = Repository(MemoryStore(), "11" * 16)
    result = copy(
        made.fresh(), dest, CopyRequest(options=StoringOptions(compression="none", workers=1)), check_only=check_only
    )
    assert [each.point.id for each in result.copied] == [each.id for each in others]
    (warning,) = result.warnings
    assert (
        warning.startswith(f"The restore point of {name} is not copied, because its manifest cannot be read: ")
        and "'../x' is not the name of a domain" in warning
    )
    made.store = whole
