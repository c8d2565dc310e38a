"""A repository with an object of every kind there is, and a limit on the memory with which it is looked at."""

from __future__ import annotations

import contextlib
import resource
import signal
import zlib
from collections.abc import Iterator

import engine_history
import histories
import pytest
from engine_history import EngineHistory
from histories import KEYS, use_small_disks
from samples import UUID, random_bytes

from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.dedup import dedup
from _cbt.repository.format import codecs, manifests, names
from _cbt.repository.format.packs import Encoded
from _cbt.repository.records import damage
from _cbt.repository.records.damage import PackDamage
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import condemned, holding, leases, removals, trash
from _cbt.repository.sharing.leases import Lease

FILES = {"machine.json": b'{"files":[]}', "nvram.0": zlib.compress(b"variables"), "guest.json": b"{}"}


def compressible(number: int) -> bytes:
    """The content a number stands for, of which packs are small."""
    return (random_bytes(40, number) * (BLOCK_SIZE // 40 + 1))[:BLOCK_SIZE] if number else bytes(BLOCK_SIZE)


def full_history(kind: str, monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    """Three points of a small disk and a removed one, with everything else there can be beside them, a session at work among it."""
    use_small_disks(monkeypatch)
    monkeypatch.setattr(histories, "block_of", compressible)
    monkeypatch.setattr(engine_history, "FILES", {**engine_history.FILES, **FILES})
    made = EngineHistory(KEYS[kind])
    for turn in range(4):
        for block in range(turn, 4 + turn):
            made.disk.write(block, 10 * turn + block + 1)
        made.backup()
    repository = made.fresh()
    writer = repository.writer()
    writer.append([_unnamed_block(repository)])
    writer.finish()
    dedup.store_hooks(repository, dedup.of_compaction(), writer.hooks())
    verify(repository, VerifyRequest(wanted=ALL, workers=1, sample=50))
    made.store.clock += leases.LAPSE * 2
    retention(repository, RetentionRequest())  # which condemns that pack
    trash.remove(repository, repository.points_of().points[0])
    repository.put_object(names.damage_of(b"\1" * 16), damage.encode(PackDamage(frozenset({0}), "it was changed")))
    removals.record(repository, [(UUID, f"20250101T000000Z-{'0' * 8}")])
    lease, last = Lease(repository, "backup"), repository.points_of().points[-1]
    holding.hold(repository, last, "export")
    condemned.condemn(repository, f"{last.folder}/vda-01234567.map")
    condemned.list_for_deletion(repository, lease.id, [f"packs/00/{'0' * 32}"])
    # One of a map that was made when blocks were moved.
    repository.put_object(f"{last.folder}/vda-01234567.map", repository.get_object(last.object_name(last.disks[0].map)))
    repository.put_object(names.draft(lease.id, UUID, last.id, "0" * 16), manifests.encode(last))
    return made


def _unnamed_block(repository: Repository) -> Encoded:
    """A block that no point names."""
    data = compressible(99)
    return Encoded(repository.keys.block_id(data), *codecs.encoder("lz4")(data), len(data))


def removed(history: EngineHistory) -> str:
    """The point that is in the trash, or was before the test took it away."""
    return sorted(history.truth)[0]


@contextlib.contextmanager
def memory_limited(more: int = 256 << 20) -> Iterator[None]:
    """No more memory than there is now and so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Hangs(BaseException):
    """Nothing came of it in a long time."""


@contextlib.contextmanager
def bounded_run(seconds: int) -> Iterator[None]:
    """Little memory, and an end."""

    def end(*_signal: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        with memory_limited():
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
