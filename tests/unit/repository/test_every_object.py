# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every byte of every kind of object is changed, and objects are cut, doubled, exchanged and deleted: nothing false is ever restored.

What may come of it is a clear error, damage with a name, or nothing at all where the object is one that may be lost. Anything
else than the engine's own errors, a missed damage and a large allocation fail.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import engine_history
import pytest
from engine_history import EngineHistory
from every_object import full_history, memory_limited, removed
from histories import KEYS
from samples import UUID
from stores_for_tests import MemoryStore

from _cbt.control import Control
from _cbt.errors import CbtError
from _cbt.operations import info
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository import creation
from _cbt.repository import repository as opening
from _cbt.repository.dedup import dedup
from _cbt.repository.format import configuration, envelope, names
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.records import damage
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import condemned, holds, leases, trash

pytestmark = pytest.mark.slow

MAY_BE_LOST = (
    "hooks/",
    "damaged/",
    "verified/",
    "leases/",
    "condemned/",
    "doomed/",
    "drafts/",
    "trash/",
    "removed/",
    "holds/",
    "collected.json",
)
NOT_SEALED = ("packs/", "condemned/")
# What only publishing and retention look at.
UPKEEP = (
    "leases/",
    "condemned/",
    "doomed/",
    "drafts/",
    "trash/",
    "removed/",
    "holds/",
    "collected.json",
)
PASSPHRASE = "correct horse"
FORMAT = Path(__file__).resolve().parents[3] / "docs" / "repository-format.md"


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    return full_history(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """No more memory than there is now and 256 MiB."""
    with memory_limited():
        yield


def looked_closer(name: str, what: str) -> bool:
    """True for some of those changes that are many: a verification takes longer than everything else, and upkeep even more."""
    upkeep = name.startswith(UPKEEP)
    one_in = (256 if upkeep else 32) if "byte" in what else (16 if upkeep else 4) if "replaced" in what else 1
    return zlib.crc32(f"{name} {what}".encode()) % one_in == 0


def examine(history: EngineHistory, name: str, what: str) -> None:
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
            if {
                key: history.repository.get_file(each, file) for key, file in each.files.items()
            } != engine_history.FILES:
                pytest.fail(f"{name} {what}: files of {each.id} are something else")
        except CbtError as error:
            assert str(error)
            hurt.add(each.id)
    missing = {
        point
        for point in history.truth
        if point not in present and not any(point in each for each in [*listing.damaged, removed(history)])
    }
    if missing and not any(f"{point}/manifest.json" in name for point in missing):
        pytest.fail(f"{name} {what}: {missing} vanished")
    if not looked_closer(name, what):
        return
    verdicts, _seconds = verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1), control=Control(), record=False)
    if {verdict.name for verdict in verdicts if verdict.damage} != hurt:
        pytest.fail(
            f"{name} {what}: verification found {[verdict.name for verdict in verdicts if verdict.damage]}, not {hurt}"
        )
    if hurt and name.startswith(MAY_BE_LOST):
        pytest.fail(f"{name} {what}: {hurt} cannot be restored without it")


def maintain(history: EngineHistory, name: str, what: str) -> None:
    """Have the repository looked after in all ways; whatever is refused, what exists then is true, and an error names the object."""
    whole = history.store
    steps: dict[str, Callable[[], object]] = {
        "retention in check mode": lambda: retention(history.fresh(), RetentionRequest(), check_only=True),
        "retention": lambda: retention(history.fresh(), RetentionRequest(compact_below=50)),
        "undelete": lambda: retention(history.fresh(), RetentionRequest(undelete=(removed(history),))),
        "collection": history.collect,
        "compaction": lambda: after_all_that_lapses(history, RetentionRequest(grace=0.0, compact_below=99)),
        "a backup": history.backup,
    }
    for step, act in steps.items():
        history.store, numbers, truth, at_mark = whole.copy(), history.numbers, dict(history.truth), history.at_mark
        try:
            act()
        except CbtError as error:
            told = name if name in whole.objects else removed(history)
            if step in ("collection", "compaction") or told not in str(error):
                pytest.fail(f"{name} {what}: {step} does not tell what is wrong: {error}")
        else:
            if step == "undelete" and removed(history) not in {each.id for each in history.fresh().points_of().points}:
                pytest.fail(f"{name} {what}: {step} did nothing")
        if history.wrong() or not set(truth) - {removed(history)} <= {
            each.id for each in history.fresh().points_of().points
        }:
            pytest.fail(f"{name} {what}: after {step} {history.wrong()} is wrong")
        history.store, history.numbers, history.truth, history.at_mark = whole, numbers, truth, at_mark


def after_all_that_lapses(history: EngineHistory, request: RetentionRequest) -> None:
    """Retention when no session can be at work any more."""
    history.store.clock += leases.LAPSE * 2 + leases.ASTRAY
    retention(history.fresh(), request)


def look(history: EngineHistory) -> None:
    """Read what only upkeep reads."""
    repository = history.fresh()
    for read in (leases.lease_holders, condemned.announced, condemned.pending_deletion, trash.removed, holds.listed):
        with contextlib.suppress(CbtError):
            read(repository)


def changed(
    history: EngineHistory,
    name: str,
    data: bytes | None,
    what: str,
    check: Callable[[EngineHistory, str, str], None] = examine,
) -> None:
    """Look at the repository while an object holds something else, or is gone."""
    before = history.store.objects[name]
    if data is None:
        del history.store.objects[name]
    else:
        history.store.objects[name] = data
    try:
        if name.startswith(UPKEEP):
            look(history)
            if looked_closer(name, what):
                maintain(history, name, what)
                check(history, name, what)
        else:
            check(history, name, what)
            if name.startswith(MAY_BE_LOST):
                dedup.deduplicator(history.fresh(), dedup.REPOSITORY, UUID, damage.read_all(history.fresh()))
    except CbtError as error:
        assert str(error)
    finally:
        history.store.objects[name] = before


def objects(history: EngineHistory) -> list[str]:
    """All but the configuration, which is swept on its own."""
    return sorted(name for name in history.store.objects if name != configuration.NAME)


def first_of_each_kind(history: EngineHistory) -> set[str]:
    """One object of each kind: every byte of these is looked at, and every sixteenth of the others."""
    return set(
        {
            (name.split("/")[0], name.rpartition(".")[2].partition("-")[0] if "." in name else ""): name
            for name in objects(history)
        }.values()
    )


def names_in_the_format() -> dict[str, re.Pattern[str]]:
    """What the format document calls the names of objects, with what they look like."""
    rows = re.search(r"## Names\n.*?\|---\|---\|\n(.*?)\n\n", FORMAT.read_text(encoding="utf-8"), re.DOTALL)
    assert rows is not None
    found = {}
    for row in rows.group(1).splitlines():
        folder = ""
        for name in re.findall(r"`([^`]+)`", row.split("|")[1]):
            whole = name if "/" in name else folder + name  # a second name is of the same folder
            folder = whole.rpartition("/")[0] + "/" * ("/" in whole)
            literal_and_not = re.split(r"<([^>]*)>", whole)
            literal_and_not[1::2] = [
                f"[0-9a-f]{{{each[:-4]}}}" if each.endswith(" hex") else "[^/]+" for each in literal_and_not[1::2]
            ]
            literal_and_not[::2] = map(re.escape, literal_and_not[::2])
            found[whole] = re.compile("".join(literal_and_not))
    return found


def test_every_kind_of_object_is_among_those_that_are_changed(history: EngineHistory) -> None:
    """A kind is added to the format and to the fixture above, or this fails."""
    kinds = names_in_the_format()
    for name in history.store.times:
        assert any(kind.fullmatch(name) for kind in kinds.values()), f"{name} is not in docs/repository-format.md"
    swept = set(objects(history))
    missing = {kind for kind, pattern in kinds.items() if not any(map(pattern.fullmatch, swept))}
    # Names of earlier versions, of the same kinds of objects.
    missing -= {kind for kind in missing if f"{kind}-<8 hex>" in kinds}
    assert missing == {"repository.json", "reserve/", "tmp/"}, (
        "the configuration is swept below, the others are no part of the repository"
    )


def test_every_folder_that_the_engine_names_is_among_those_that_are_changed(history: EngineHistory) -> None:
    assert {kind.template.partition("/")[0] for kind in names.KINDS} - {configuration.NAME} == {
        name.split("/")[0] for name in objects(history)
    }


def test_a_flipped_bit_in_any_byte(history: EngineHistory) -> None:
    for name in objects(history):
        whole = history.store.objects[name]
        for index in range(0, len(whole), 1 if name in first_of_each_kind(history) else 16):
            data = bytearray(whole)
            data[index] ^= 1 << index % 8
            changed(history, name, bytes(data), f"with byte {index} changed")


def test_cut_off_at_any_length(history: EngineHistory) -> None:
    for name in objects(history):
        whole = history.store.objects[name]
        for length in range(0, len(whole), 1 if name in first_of_each_kind(history) else 16):
            changed(history, name, whole[:length], f"cut to {length} bytes")


def test_duplicated_extended_emptied_and_deleted(history: EngineHistory) -> None:
    for name in objects(history):
        whole = history.store.objects[name]
        for what, data in (
            ("doubled", whole * 2),
            ("prolonged", whole + b"\0"),
            ("emptied", b""),
            ("zeroed", bytes(len(whole))),
            ("deleted", None),
        ):
            changed(history, name, data, what)


def test_every_object_is_replaced_by_every_other_object(history: EngineHistory) -> None:
    for name in objects(history):
        for other in objects(history):
            if other != name:
                changed(history, name, history.store.objects[other], f"replaced by {other}")


ODD_NAME = os.fsdecode(b"\xff")
ODD = [None, 1, -1, 10**400, 1e400, True, "", "x", ODD_NAME, [], [1], {}, {"a": 1}]


def oddities(body: object) -> Iterator[object]:
    """A body with each of its fields missing, and made each of the odd values, at any depth."""
    if isinstance(body, dict):
        yield {**body, "more": 1}
        for key, value in body.items():
            yield {each: kept for each, kept in body.items() if each != key}
            yield from ({**body, key: odd} for odd in [*ODD, *oddities(value)])
    elif isinstance(body, list):
        for index, value in enumerate(body):
            yield from ([*body[:index], odd, *body[index + 1 :]] for odd in [*ODD, *oddities(value)])


def bear(history: EngineHistory, *_what: str) -> None:
    """Do what people do with a repository; only errors of the engine may come of it."""
    look(history)
    request = RetentionRequest(Rules(last=1, daily=1), undelete=(removed(history),), compact_below=50)
    for act in (
        lambda: info.healths(history.fresh(), info.list_points(history.fresh())[0]),
        lambda: retention(history.fresh(), request, check_only=True),
        lambda: verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1, sample=50), record=False),
    ):
        with contextlib.suppress(CbtError):
            act()


def test_any_field_is_replaced_by_any_value(history: EngineHistory) -> None:
    """By somebody who can make the checksum, or by another version: an error of ours, or nothing."""
    keys = history.fresh().keys
    for name in sorted(first_of_each_kind(history)):
        found = (
            re.match(rb'\{"kvm\.cbt":"([a-z]+)",', keys.unseal(name, history.store.objects[name]))
            if not name.startswith(NOT_SEALED)
            else None
        )
        if found is not None:
            kind = found.group(1).decode()
            for body in oddities(envelope.decode(kind, 1, keys.unseal(name, history.store.objects[name]), name)):
                data = envelope.encode(kind, 1, body)  # type: ignore[arg-type]
                before = history.store.objects[name]
                history.store.objects[name] = keys.seal(name, data)
                bear(history)
                history.store.objects[name] = before


def test_a_copy_under_an_invalid_name(history: EngineHistory) -> None:
    """As a person, an editor or a file system may put it there: every point stays and stays true, and only errors of the engine come of it."""
    for name in sorted(first_of_each_kind(history)):
        kind, (folder, _slash, last) = name.partition("/")[0], name.rpartition("/")
        names = {
            f"{name}~",
            f"{name}/deeper",
            f"{kind}/README",
            f"{kind}/{'f' * 32}",
            f"{kind}/ff/{last}",
            f"{folder}/" + ODD_NAME,
        }
        for other in sorted(names - set(objects(history))):
            whole, numbers, truth, at_mark = history.store, history.numbers, dict(history.truth), history.at_mark
            history.store = whole.copy()
            history.store.objects[other], history.store.times[other] = whole.objects[name], whole.times[name]
            bear(history)
            for act in (
                lambda: verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1)),
                history.collect,
                history.backup,
            ):
                with contextlib.suppress(CbtError):
                    act()
            found = {each.id for each in history.fresh().points_of().points}
            if history.untrue() or history.damaged() or not set(truth) - {removed(history)} <= found:
                pytest.fail(f"{name} as {other}: {history.wrong()} is wrong, {set(truth) - found} vanished")
            history.store, history.numbers, history.truth, history.at_mark = whole, numbers, truth, at_mark


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_the_configuration_in_any_byte(passphrase: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository opens with the id and the keys it was created with, or not at all."""
    monkeypatch.setattr("_cbt.repository.crypto.key_slots.COST", 1 << 10)
    store = MemoryStore()
    for module in (creation, opening):
        monkeypatch.setattr(module, "open_store", lambda _place: store)
    place = RepositoryLocation("memory", passphrase=passphrase)
    made = creation.open_or_create(place)
    assert made is not None
    whole, seal = store.objects[configuration.NAME], made.keys.seal("x", b"data")
    kinds = [
        bytes(whole[:index] + bytes([whole[index] ^ 1 << index % 8]) + whole[index + 1 :])
        for index in range(len(whole))
    ]
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
