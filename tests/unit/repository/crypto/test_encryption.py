"""Encrypted repositories: only the passphrase opens them, and nothing in them can be changed, exchanged or put elsewhere unnoticed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import UUID, point, random_bytes, record
from stores_for_tests import with_bit_flipped

from _cbt.errors import CbtError, DamagedObject, PassphraseRefused, RepositoryError
from _cbt.repository.creation import open_or_create
from _cbt.repository.crypto import encryption, gcm, key_slots
from _cbt.repository.crypto.encryption import EncryptedKeys
from _cbt.repository.crypto.keys import Keys, PlainKeys
from _cbt.repository.format import codecs, configuration, envelope, manifests, names, packs
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import Encoded, PackRef
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import Repository, open_repository

PASSPHRASE = "correct horse battery staple"
MARK = b"a line that must not be readable anywhere "
BLOCKS = [(MARK * 2000)[:65536], random_bytes(65536, 5), (MARK * 3)[:100]]


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying one takes no noticeable time."""
    monkeypatch.setattr(key_slots, "COST", 16)


def encrypted(location: Path, passphrase: str = PASSPHRASE) -> Repository:
    made = open_or_create(RepositoryLocation(str(location), passphrase=passphrase))
    assert made is not None
    return made


def blocks_for(repository: Repository) -> list[Encoded]:
    return [Encoded(repository.keys.block_id(block), *codecs.encoder("lz4")(block), len(block)) for block in BLOCKS]


def fill(repository: Repository) -> tuple[RestorePoint, PackRef]:
    """A restore point with one disk of three blocks."""
    writer = repository.writer()
    placement = writer.append(blocks_for(repository))
    written = writer.finish()
    size = 2 * 65536 + 100
    builder = MapBuilder(size)
    builder.put(0, 3, placement.pack, 0)
    made = point(1)
    files = repository.put_files(
        made.folder, {"vda.map": builder.finish(written).encode(), "domain.xml": b"<domain>" + MARK + b"</domain>"}
    )
    disk = dataclasses.replace(record(size=size), map=files["vda.map"])
    made = dataclasses.replace(made, disks=(disk,), files={"domain.xml": files["domain.xml"]})
    repository.publish(made)
    return made, written[placement.pack]


def content(repository: Repository, ref: PackRef) -> list[object]:
    return [
        block if isinstance(block, DamagedObject) else bytes(block)
        for block in repository.reader.blocks(ref, 0, ref.blocks)
    ]


def objects(location: Path) -> list[Path]:
    return [path for path in location.rglob("*") if path.is_file() and path.parent.name != "reserve"]


@pytest.fixture
def filled(place: Path) -> tuple[Repository, RestorePoint, PackRef]:
    repository = encrypted(place)
    return (repository, *fill(repository))


# What is read and by whom


def test_the_whole_repository_is_readable_with_the_passphrase(
    place: Path, filled: tuple[Repository, RestorePoint, PackRef]
) -> None:
    _repository, made, ref = filled
    again = open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))
    assert again.slots == ("default",)
    listing = again.points_of()
    assert (listing.points, dict(listing.damaged)) == ((made,), {})
    assert list(again.read_map(made, "vda").runs())[0].pack == ref
    assert again.get_file(made, made.files["domain.xml"]) == b"<domain>" + MARK + b"</domain>"
    assert content(again, ref) == BLOCKS


def test_stored_objects_reveal_nothing_without_the_passphrase(
    place: Path, filled: tuple[Repository, RestorePoint, PackRef]
) -> None:
    repository, made, ref = filled
    secrets = [PASSPHRASE.encode(), MARK, b"web1", BLOCKS[1][:32], repository.keys._master]  # type: ignore[attr-defined]
    secrets += [hashlib.sha256(block).digest() for block in BLOCKS]  # nor whether certain known data is stored
    secrets += [repository.keys.block_id(block) for block in BLOCKS]
    secrets += [secret.hex().encode() for secret in secrets]
    found = {
        path.relative_to(place): secret for path in objects(place) for secret in secrets if secret in path.read_bytes()
    }
    assert found == {}
    assert len(objects(place)) == 5
    assert made.disks and ref.blocks == 3


def test_equal_blocks_have_equal_ids_in_one_repository_only(tmp_path: Path) -> None:
    one, other = encrypted(tmp_path / "one"), encrypted(tmp_path / "other")
    assert one.keys.block_id(BLOCKS[0]) == one.keys.block_id(memoryview(BLOCKS[0])) != other.keys.block_id(BLOCKS[0])
    assert one.keys.block_id(BLOCKS[0]) != PlainKeys().block_id(BLOCKS[0])


def sealed_apart(keys: Keys, pack_id: bytes, first: int, payloads: list[bytes]) -> list[bytes]:
    """Blocks sealed together, each by itself."""
    sealed = b"".join(keys.pack(pack_id).seal_blocks(first, [memoryview(payload) for payload in payloads]))
    lengths = [len(payload) + keys.overhead for payload in payloads]
    ends = list(itertools.accumulate(lengths))
    assert len(sealed) == ends[-1]
    return [sealed[end - length : end] for end, length in zip(ends, lengths)]


def test_the_same_content_is_never_the_same_bytes_twice(filled: tuple[Repository, RestorePoint, PackRef]) -> None:
    repository, _made, _ref = filled
    assert repository.keys.seal("leases/a", b"x") != repository.keys.seal("leases/a", b"x")
    keys = repository.keys
    assert sealed_apart(keys, bytes(16), 0, [b"x"]) != sealed_apart(keys, bytes(15) + b"\1", 0, [b"x"])
    first, second = sealed_apart(keys, bytes(16), 0, [b"x", b"x"])
    assert first != second


# The passphrase


def test_a_wrong_passphrase_is_reported_as_such(place: Path, filled: tuple[Repository, RestorePoint, PackRef]) -> None:
    for opening in (open_repository, open_or_create):
        with pytest.raises(
            PassphraseRefused,
            match=r"The passphrase opens no key slot of the repository .*: it is wrong, or the slot was changed",
        ) as caught:
            opening(RepositoryLocation(str(place), passphrase="wrong horse"))
        assert "horse" not in str(caught.value)


def test_a_missing_passphrase_is_asked_for(place: Path, filled: tuple[Repository, RestorePoint, PackRef]) -> None:
    for opening in (open_repository, open_or_create):
        with pytest.raises(PassphraseRefused, match="is encrypted. Give its passphrase"):
            opening(str(place))


def test_a_passphrase_for_a_plain_repository_is_refused_and_nothing_written(
    place: Path, repository: Repository
) -> None:
    before = objects(place)
    for opening in (open_repository, open_or_create):
        with pytest.raises(PassphraseRefused, match="is not encrypted, but a passphrase was given"):
            opening(RepositoryLocation(str(place), passphrase=PASSPHRASE))
    assert objects(place) == before


def test_an_empty_passphrase_makes_no_plain_repository(place: Path) -> None:
    for check_only in (True, False):
        with pytest.raises(PassphraseRefused, match="The passphrase is empty"):
            open_or_create(RepositoryLocation(str(place), passphrase=""), check_only)
    assert not place.exists()


def test_check_only_creates_no_encrypted_repository(place: Path) -> None:
    assert open_or_create(RepositoryLocation(str(place), passphrase=PASSPHRASE), check_only=True) is None
    assert not place.exists()


@pytest.mark.parametrize("passphrase", ["ß ключ 鍵", "x" * 5000, " "])
def test_any_text_may_be_a_passphrase(place: Path, passphrase: str) -> None:
    assert encrypted(place, passphrase).id == open_repository(RepositoryLocation(str(place), passphrase=passphrase)).id


def test_a_passphrase_that_is_not_text_is_refused(place: Path, filled: object) -> None:
    """As that of a file of random bytes."""
    for opening in (open_repository, open_or_create):
        with pytest.raises(PassphraseRefused, match="The passphrase is not text in UTF-8. Give it as text") as caught:
            opening(RepositoryLocation(str(place), passphrase="horse\udcff"))
        assert "horse" not in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("unsupported"), MemoryError()])
def test_a_host_that_cannot_try_a_passphrase_reports_the_reason(
    place: Path, filled: object, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Its crypto policy may forbid scrypt, as that of FIPS does, or it may lack the memory."""

    def refuse(*_arguments: object, **_options: object) -> bytes:
        raise error

    monkeypatch.setattr(hashlib, "scrypt", refuse)
    with pytest.raises(
        RepositoryError, match="A passphrase cannot be tried on this host.* Check the memory and the crypto policy"
    ) as caught:
        open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))
    assert not isinstance(caught.value, DamagedObject)


def test_the_repr_of_a_location_hides_its_passphrase() -> None:
    assert PASSPHRASE not in repr(RepositoryLocation("/backup", passphrase=PASSPHRASE))


def test_without_the_library_the_message_says_what_to_install(
    place: Path, filled: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcm, "AESGCM", None)
    with pytest.raises(RepositoryError, match="python3-cryptography"):
        open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))


def test_a_repository_that_is_not_encrypted_does_not_wait_for_the_library(place: Path) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from _cbt.repository.format import names
from _cbt.repository.creation import open_or_create
open_or_create(sys.argv[2])
sys.exit("cryptography" in sys.modules)
"""
    subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parents[4] / "plugins/module_utils"), str(place)], check=True
    )


# The configuration


def rewrite(place: Path, change: Callable[[dict[str, object]], object]) -> None:
    """As somebody would who can write to the repository, but does not have the key."""
    path = place / "repository.json"
    body = envelope.decode("repository", 1, path.read_bytes(), "repository.json")
    change(body)
    path.write_bytes(envelope.encode("repository", 1, body))


def test_every_changed_bit_of_the_configuration_is_detected(place: Path, filled: object) -> None:
    data = (place / "repository.json").read_bytes()
    for bit in range(len(data) * 8):
        (place / "repository.json").write_bytes(with_bit_flipped(data, bit))
        with pytest.raises(DamagedObject):
            open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))


def test_a_configuration_rewritten_as_plain_does_not_pass_for_a_plain_repository(place: Path, filled: object) -> None:
    def strip(body: dict[str, object]) -> None:
        del body["slots"], body["code"]
        body.update(hash="sha256", features=[])

    rewrite(place, strip)
    with pytest.raises(PassphraseRefused, match="If the repository should be encrypted, this is a different one"):
        open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))


def test_another_id_opens_no_slot(place: Path, filled: object) -> None:
    rewrite(place, lambda body: body.update(id="0" * 32))
    with pytest.raises(PassphraseRefused, match="or the slot was changed"):
        open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))


@pytest.mark.parametrize("change", [{"n": 32}, {"r": 9}, {"p": 2}, {"salt": "00" * 32}, {"key": "00" * 48}])
def test_a_changed_slot_does_not_open(place: Path, filled: object, change: dict[str, object]) -> None:
    rewrite(place, lambda body: body["slots"]["default"].update(change))  # type: ignore[index]
    with pytest.raises(PassphraseRefused, match="or the slot was changed"):
        open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))


def test_a_slot_that_was_added_renamed_or_removed_is_noticed(
    place: Path, filled: tuple[Repository, RestorePoint, PackRef], tmp_path: Path
) -> None:
    shutil.copytree(place, tmp_path / "sound")
    encrypted(tmp_path / "other", "theirs")
    theirs = envelope.decode("repository", 1, (tmp_path / "other" / "repository.json").read_bytes(), "")["slots"][
        "default"
    ]
    changes: list[tuple[Callable[[dict[str, object]], object], type[CbtError]]] = [
        (lambda body: body["slots"].update(theirs=theirs), DamagedObject),  # type: ignore[attr-defined]
        (lambda body: body.update(slots={"renamed": body["slots"]["default"]}), PassphraseRefused),  # type: ignore[index]
        (lambda body: body.update(slots={}), DamagedObject),
        (lambda body: body.update(slots={"\udcff": theirs}), DamagedObject),
        (lambda body: body.update(code="0" * 64), DamagedObject),
    ]
    for change, error in changes:
        shutil.copy(tmp_path / "sound" / "repository.json", place / "repository.json")
        rewrite(place, change)
        with pytest.raises(error):
            open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))


def test_features_that_are_not_known_are_refused_by_name(place: Path, filled: object) -> None:
    rewrite(place, lambda body: body.update(features=["encryption", "quantum"]))
    with pytest.raises(RepositoryError, match="uses features this version of kvm.cbt does not know"):
        open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 40},
        {"n": 3},
        {"n": 0},
        {"r": 1 << 20},
        {"p": 0},
        {"p": 1 << 30},
        {"n": -16},
        {"n": 1e400},
        {"n": 1 << 22, "r": 1},
        {"r": -1},
        {"salt": 3},
        {"key": "zz"},
    ],
)
def test_a_slot_with_excessive_memory_or_time_cost_is_refused_before_it_is_tried(
    place: Path, filled: object, change: dict[str, object]
) -> None:
    rewrite(place, lambda body: body["slots"]["default"].update(change))  # type: ignore[index]
    with pytest.raises(DamagedObject, match="key slot"):
        open_repository(RepositoryLocation(str(place), passphrase=PASSPHRASE))


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
NAMES = st.sampled_from(["id", "slots", "code", "hash", "features", "block_size"])
FIELDS = st.dictionaries(NAMES, JSON | st.just(["encryption"]) | st.just("hmac-sha256"))


@given(FIELDS)
def test_any_configuration_is_either_read_or_refused(fields: dict[str, object]) -> None:
    body = {
        "id": "0" * 32,
        "block_size": 65536,
        "hash": "hmac-sha256",
        "features": ["encryption"],
        "slots": {},
        "code": "",
        **fields,
    }
    with contextlib.suppress(RepositoryError):
        configuration.decode(envelope.encode("repository", 1, body), "/backup")


# Sealed objects


def test_every_changed_bit_of_a_sealed_object_is_noticed_and_every_cut(
    filled: tuple[Repository, RestorePoint, PackRef],
) -> None:
    keys = filled[0].keys
    stored = keys.seal("points/a/b/vda.map", b"a map")
    for bit in range(len(stored) * 8):
        with pytest.raises(DamagedObject, match="points/a/b/vda.map is damaged"):
            keys.unseal("points/a/b/vda.map", with_bit_flipped(stored, bit))
    for length in range(len(stored)):
        with pytest.raises(DamagedObject, match="points/a/b/vda.map is damaged"):
            keys.unseal("points/a/b/vda.map", stored[:length])
    with pytest.raises(DamagedObject):
        keys.unseal("points/a/b/vda.map", stored + b"x")


@given(st.binary(max_size=200))
def test_garbage_is_not_a_sealed_object(stored: bytes) -> None:
    with pytest.raises(DamagedObject):
        EncryptedKeys(bytes(32)).unseal("hooks/1", stored)
    with pytest.raises(DamagedObject):
        EncryptedKeys(bytes(32)).unseal("hooks/1", b"KVMCBTSO\1\0" + stored)


def test_a_plain_object_in_an_encrypted_repository_is_damage(
    place: Path, filled: tuple[Repository, RestorePoint, PackRef]
) -> None:
    repository, made, _ref = filled
    name = names.manifest(made.uuid, made.id)
    (place / name).write_bytes(manifests.encode(dataclasses.replace(made, domain="forged")))
    listing = repository.points_of()
    assert not listing.points
    assert "it is not a sealed object of this encrypted repository" in listing.damaged[name]


def test_a_manifest_or_map_under_another_name_is_damage(
    place: Path, filled: tuple[Repository, RestorePoint, PackRef]
) -> None:
    repository, made, _ref = filled
    copied = names.manifest(UUID, "20260102T120000Z-00000002")
    (place / copied).parent.mkdir(parents=True)
    shutil.copy(place / names.manifest(made.uuid, made.id), place / copied)
    listing = repository.points_of()
    assert listing.points == (made,)
    assert "its seal is broken" in listing.damaged[copied]
    shutil.copy(place / made.folder / "domain.xml", place / made.folder / "vda.map")
    with pytest.raises(DamagedObject, match="vda.map is damaged: its seal is broken"):
        repository.read_map(made, "vda")


def test_a_manifest_map_or_pack_of_another_repository_is_damage(
    place: Path, filled: tuple[Repository, RestorePoint, PackRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where all names and the passphrase are the same."""
    repository, made, ref = filled
    monkeypatch.setattr(packs, "new_id", lambda: ref.id)
    other = encrypted(tmp_path / "other")
    assert fill(other)[1] == ref
    for path in objects(tmp_path / "other"):
        if path.name != "repository.json":
            shutil.copy(path, place / path.relative_to(tmp_path / "other"))
    (cause,) = repository.points_of().damaged.values()
    assert "its seal is broken" in cause
    with pytest.raises(DamagedObject, match="vda.map is damaged: its seal is broken"):
        repository.read_map(made, "vda")
    with pytest.raises(DamagedObject, match="its header or directory was changed"):
        content(repository, ref)


def test_an_older_map_put_back_is_damage(place: Path, filled: tuple[Repository, RestorePoint, PackRef]) -> None:
    repository, made, _ref = filled
    older = (place / made.folder / "vda.map").read_bytes()
    files = repository.put_files(made.folder, {"vda.map": MapBuilder(made.disks[0].size).finish({}).encode()})
    changed = dataclasses.replace(made, disks=(dataclasses.replace(made.disks[0], map=files["vda.map"]),))
    repository.publish(changed)
    assert repository.read_map(changed, "vda").stored_blocks == 0
    (place / made.folder / "vda.map").write_bytes(older)
    with pytest.raises(DamagedObject, match="it does not match its restore point|cannot have more than"):
        repository.read_map(changed, "vda")


def test_a_newer_seal_is_refused_by_name(
    filled: tuple[Repository, RestorePoint, PackRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = filled[0].keys
    monkeypatch.setattr(encryption, "VERSION", 2)
    stored = keys.seal("leases/a", b"x")
    monkeypatch.undo()
    with pytest.raises(RepositoryError, match="leases/a is sealed in a format that this version") as caught:
        keys.unseal("leases/a", stored)
    assert not isinstance(caught.value, DamagedObject)


# Packs


def found_in(location: Path, ref: PackRef) -> list[object]:
    """The blocks as a reader finds them that knows nothing yet."""
    return content(open_repository(RepositoryLocation(str(location), passphrase=PASSPHRASE)), ref)


def test_every_changed_byte_of_a_pack_is_detected(
    place: Path, filled: tuple[Repository, RestorePoint, PackRef]
) -> None:
    repository, _made, ref = filled
    path = place / ref.name
    data = path.read_bytes()
    entries = [repository.reader.directory(ref).entry(ordinal) for ordinal in range(3)]
    step = 997  # of the large payload not every byte is tried, of the rest every one
    places = [
        *range(entries[1].offset),
        *range(entries[1].offset, entries[2].offset, step),
        *range(entries[2].offset, len(data)),
    ]
    for offset in places:
        path.write_bytes(with_bit_flipped(data, offset * 8 + offset % 8))
        try:
            found = content(Repository(repository.store, repository.id, repository.keys), ref)
        except DamagedObject:
            assert offset < packs.HEADER.size or offset >= ref.directory_offset
            continue
        struck = next(
            ordinal for ordinal, entry in enumerate(entries) if entry.offset <= offset < entry.offset + entry.stored
        )
        assert [isinstance(block, DamagedObject) for block in found] == [ordinal == struck for ordinal in range(3)]
        assert "its seal is broken" in str(found[struck])
        assert [block for block in found if not isinstance(block, DamagedObject)] == [
            block for ordinal, block in enumerate(BLOCKS) if ordinal != struck
        ]


def test_every_truncation_of_a_pack_is_detected(place: Path, filled: tuple[Repository, RestorePoint, PackRef]) -> None:
    _repository, _made, ref = filled
    data = (place / ref.name).read_bytes()
    for length in (0, 1, 31, 32, 100, ref.directory_offset, ref.size - 57, ref.size - 1):
        (place / ref.name).write_bytes(data[:length])
        with pytest.raises(DamagedObject, match="is damaged"):
            found_in(place, ref)


def test_blocks_exchanged_within_a_pack_or_between_packs_are_noticed(place: Path) -> None:
    repository = encrypted(place)
    refs = []
    for turn in range(2):
        block = random_bytes(65536, turn), random_bytes(65536, turn + 2)
        writer = repository.writer()
        writer.append([Encoded(repository.keys.block_id(each), codecs.STORED, each, 65536) for each in block])
        refs += writer.finish().values()
    stored = 65536 + encryption.TAG_SIZE
    first, second = ((place / ref.name).read_bytes() for ref in refs)
    head, one, two, rest = (
        first[:32],
        first[32 : 32 + stored],
        first[32 + stored : 32 + 2 * stored],
        first[32 + 2 * stored :],
    )
    (place / refs[0].name).write_bytes(head + two + one + rest)
    assert ["its seal is broken" in str(block) for block in found_in(place, refs[0])] == [True, True]
    (place / refs[0].name).write_bytes(head + second[32 : 32 + stored] + two + rest)
    assert ["its seal is broken" in str(block) for block in found_in(place, refs[0])][0]
    (place / refs[0].name).write_bytes(second)
    with pytest.raises(DamagedObject, match="its header or directory was changed"):
        found_in(place, refs[0])


def test_a_pack_of_a_plain_repository_is_damage_in_an_encrypted_one(
    filled: tuple[Repository, RestorePoint, PackRef], tmp_path: Path
) -> None:
    repository, _made, _ref = filled
    made = open_or_create(str(tmp_path / "plain"))
    assert made is not None
    writer = made.writer()
    writer.append(blocks_for(made))
    (ref,) = writer.finish().values()
    repository.store.put(ref.name, made.store.get(ref.name))
    with pytest.raises(DamagedObject, match="its header or directory was changed"):
        content(repository, ref)


@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=9),
    st.integers(0, 20000),
    st.binary(min_size=16, max_size=16),
)
def test_blocks_sealed_together_are_unsealed_one_by_one_and_only_in_their_place(
    payloads: list[bytes], first: int, pack_id: bytes
) -> None:
    keys = EncryptedKeys(bytes(32))
    sealed_blocks = sealed_apart(keys, pack_id, first, payloads)
    for ordinal, (stored, payload) in enumerate(zip(sealed_blocks, payloads), first):
        assert keys.pack(pack_id).unseal_block(ordinal, memoryview(stored)) == payload
        for elsewhere in (ordinal + 1, ordinal + (1 << 32)):
            with pytest.raises(DamagedObject):
                keys.pack(pack_id).unseal_block(elsewhere, stored)


# What may be told of it


@pytest.mark.parametrize("strike", ["wrong", "missing", "manifest", "map", "pack", "configuration"])
def test_no_error_reveals_a_secret(place: Path, filled: tuple[Repository, RestorePoint, PackRef], strike: str) -> None:
    repository, made, ref = filled
    name = {
        "manifest": names.manifest(made.uuid, made.id),
        "map": f"{made.folder}/vda.map",
        "pack": ref.name,
        "configuration": "repository.json",
    }.get(strike)
    if name is not None:
        (place / name).write_bytes(with_bit_flipped((place / name).read_bytes(), 300))
    told: list[str] = []
    try:
        given_passphrase = {"wrong": PASSPHRASE + "!", "missing": None}.get(strike, PASSPHRASE)
        opened = open_repository(RepositoryLocation(str(place), passphrase=given_passphrase))
        told += opened.points_of().damaged.values()
        opened.read_map(made, "vda")
        told += [str(each) for each in content(opened, ref) if isinstance(each, DamagedObject)]
    except CbtError as error:
        cause: BaseException | None = error
        while cause is not None:
            told.append(f"{cause!r} {cause} {cause.args}")
            cause = cause.__cause__ or cause.__context__
    assert told
    master: bytes = repository.keys._master  # type: ignore[attr-defined]
    for secret in (PASSPHRASE, master.hex(), repr(master), MARK.decode()):
        assert not [text for text in told if secret in text]


def test_the_repr_of_keys_hides_them(filled: tuple[Repository, RestorePoint, PackRef]) -> None:
    keys: Keys = filled[0].keys
    assert repr(keys._master) not in repr(keys) + repr(keys.pack(bytes(16)))  # type: ignore[attr-defined]
