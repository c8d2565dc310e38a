# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every byte of every kind of object is changed, and objects are cut, doubled, exchanged and deleted: nothing false is ever restored.

What may come of it is a clear error, damage with a name, or nothing at all where the object is one that may be lost. Anything
else than the engine's own errors, a missed damage and a large allocation fail.
"""

from __future__ import annotations

import resource
import zlib
from collections.abc import Callable, Iterator

import histories
import pytest
from histories import KEYS, History
from samples import random_bytes
from stores_for_tests import MemoryStore

from _cbt.errors import CbtError
from _cbt.grid import BLOCK_SIZE
from _cbt.interrupt import Interrupt
from _cbt.operations.verify import verify
from _cbt.repository import codecs, configuration, damage, dedup
from _cbt.repository import repository as opening
from _cbt.repository.damage import PackDamage
from _cbt.repository.packs import Encoded
from _cbt.repository.places import Place
from _cbt.repository.repository import Repository

MAY_BE_LOST = ("hooks/", "damaged/", "verified/", "leases/", "condemned/")
PASSPHRASE = "correct horse"


def _compressible(number: int) -> bytes:
    return (random_bytes(40, number) * (BLOCK_SIZE // 40 + 1))[:BLOCK_SIZE] if number else bytes(BLOCK_SIZE)


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> History:
    """Three points of a small disk, with everything else there can be beside them."""
    monkeypatch.setattr(histories, "BLOCKS", 8)
    monkeypatch.setattr(histories.Disk, "size", 8 * BLOCK_SIZE - 512)
    monkeypatch.setattr(histories, "block_of", _compressible)
    monkeypatch.setattr(histories, "encoder", lambda _none: codecs.encoder("lz4"))
    made = History(KEYS[request.param])
    for turn in range(3):
        for block in range(turn, 4 + turn):
            made.disk.write(block, 10 * turn + block + 1)
        made.backup()
    repository = made.fresh()
    packs = [ref for each in repository.points_of().points for ref in repository.read_map(each, "vda").packs]
    finding = dedup.deduplicator(repository, dedup.REPOSITORY, "domain", {})
    assert finding is not None
    writer = repository.writer()
    writer.append([made_block(repository)])
    writer.finish()
    dedup.record(repository, "domain", "session", writer.hooks())
    verify(repository, wanted="all", workers=1)
    repository.put_object(damage.object_name(b"\1" * 16), damage.encode(PackDamage(frozenset({0}), "it was changed")))
    assert len(packs) >= 3
    return made


def made_block(repository: Repository) -> Encoded:
    """A block that no point names."""
    data = _compressible(99)
    return Encoded(repository.keys.block_id(data), *codecs.encoder("lz4")(data), len(data))


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """No more memory than there is now and 256 MiB."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def looked_closer(name: str, what: str) -> bool:
    """True for one change in sixteen of those that are many: a verification takes longer than everything else."""
    return "byte" not in what or zlib.crc32(f"{name} {what}".encode()) % 16 == 0


def examine(history: History, name: str, what: str) -> None:
    """Do what people do with a repository, and hold it against the truth."""
    try:
        listing = history.fresh().points_of()
    except CbtError:
        return  # it says that it cannot be read
    hurt = set(listing.damaged)
    present = {each.id for each in listing.points}
    for each in listing.points:
        try:
            if history.read(each.id, each.uuid) != history.truth[each.id]:
                pytest.fail(f"{name} {what}: {each.id} restores to something else")
        except CbtError as error:
            assert str(error)
            hurt.add(each.id)
    missing = {point for point in history.truth if point not in present and not any(point in each for each in listing.damaged)}
    if missing and not any(f"{point}/manifest.json" in name for point in missing):
        pytest.fail(f"{name} {what}: {missing} vanished")
    if not looked_closer(name, what):
        return
    verdicts, _seconds = verify(history.fresh(), wanted="all", workers=1, interrupt=Interrupt(), record=False)
    if {verdict.name for verdict in verdicts if verdict.damage} != hurt:
        pytest.fail(f"{name} {what}: verification found {[verdict.name for verdict in verdicts if verdict.damage]}, not {hurt}")
    if hurt and name.startswith(MAY_BE_LOST):
        pytest.fail(f"{name} {what}: {hurt} cannot be restored without it")


def changed(history: History, name: str, data: bytes | None, what: str, check: Callable[[History, str, str], None] = examine) -> None:
    """Look at the repository while an object holds something else, or is gone."""
    before = history.store.objects[name]
    if data is None:
        del history.store.objects[name]
    else:
        history.store.objects[name] = data
    try:
        check(history, name, what)
        if name.startswith(MAY_BE_LOST):
            dedup.deduplicator(history.fresh(), dedup.REPOSITORY, "domain", damage.read_all(history.fresh()))
    except CbtError as error:
        assert str(error)
    finally:
        history.store.objects[name] = before


def objects(history: History) -> list[str]:
    """All but the configuration, which is swept on its own."""
    return sorted(name for name in history.store.objects if name != configuration.NAME)


def first_of_each_kind(history: History) -> set[str]:
    """One object of each kind: every byte of these is looked at, and every sixteenth of the others."""
    return set({(name.split("/")[0], name.rpartition(".")[2] if "." in name else ""): name for name in objects(history)}.values())


def test_every_kind_of_object_is_among_those_that_are_changed(history: History) -> None:
    kinds = {name.split("/")[0] for name in objects(history)}
    assert kinds >= {"packs", "points", "hooks", "damaged", "verified"}


def test_a_flipped_bit_in_any_byte(history: History) -> None:
    for name in objects(history):
        whole = history.store.objects[name]
        for index in range(0, len(whole), 1 if name in first_of_each_kind(history) else 16):
            data = bytearray(whole)
            data[index] ^= 1 << index % 8
            changed(history, name, bytes(data), f"with byte {index} changed")


def test_cut_off_at_any_length(history: History) -> None:
    for name in objects(history):
        whole = history.store.objects[name]
        for length in range(0, len(whole), 1 if name in first_of_each_kind(history) else 16):
            changed(history, name, whole[:length], f"cut to {length} bytes")


def test_doubled_prolonged_emptied_and_deleted(history: History) -> None:
    for name in objects(history):
        whole = history.store.objects[name]
        for what, data in (("doubled", whole * 2), ("prolonged", whole + b"\0"), ("emptied", b""), ("zeroed", bytes(len(whole))), ("deleted", None)):
            changed(history, name, data, what)


def test_in_the_place_of_any_other(history: History) -> None:
    for name in objects(history):
        for other in objects(history):
            if other != name:
                changed(history, name, history.store.objects[other], f"replaced by {other}")


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_the_configuration_in_any_byte(passphrase: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository opens with the id and the keys it was created with, or not at all."""
    monkeypatch.setattr("_cbt.repository.key_slots.COST", 1 << 10)
    store = MemoryStore()
    monkeypatch.setattr(opening, "store_at", lambda _place: store)
    place = Place("memory", passphrase=passphrase)
    made = opening.open_or_create(place)
    assert made is not None
    whole, seal = store.objects[configuration.NAME], made.keys.seal("x", b"data")
    kinds = [bytes(whole[:index] + bytes([whole[index] ^ 1 << index % 8]) + whole[index + 1 :]) for index in range(len(whole))]
    kinds += [whole[:length] for length in range(len(whole))] + [whole * 2, whole + b"\0", b"{}", b"null"]
    for data in kinds:
        store.objects[configuration.NAME] = data
        try:
            opened = opening.open_repository(place)
        except CbtError as error:
            assert str(error)
            assert PASSPHRASE not in str(error)
        else:
            assert opened.id == made.id
            assert opened.keys.unseal("x", seal) == b"data"
