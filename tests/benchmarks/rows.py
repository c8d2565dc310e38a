"""What is measured: every row of the benchmark."""

from __future__ import annotations

import functools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contenders import Contender, EncryptedEngine, Engine, Peer, RawCopy, S3Engine
from disk_image import MIB
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from timed import BenchmarkError, Measurement

CHANGED = 64 * MIB
GIB = 1 << 30
SMALL_DISK, LARGE_DISK = 10 * GIB, 2048 * GIB
MEMORY_BOUND = 512 * MIB

Say = Callable[[str], None]
Trial = Callable[[], Measurement]


@dataclass(frozen=True)
class Row:
    """One comparison: the runs of the engine and of the other, and what their ratio may be."""

    number: int
    title: str
    other_name: str
    ours: tuple[Measurement, ...]
    other: tuple[Measurement, ...]
    amount: int  # bytes which a run had to deal with
    bound: float | None

    @property
    def seconds(self) -> tuple[float, float]:
        """Median wall time of the engine and of the other."""
        return median_wall(self.ours), median_wall(self.other)

    @property
    def ratio(self) -> float:
        """The engine's time in times of the other's."""
        ours, other = self.seconds
        return ours / other

    @property
    def durable_ratio(self) -> float:
        """The same with the time after which everything had reached the disk."""
        return median_durable(self.ours) / median_durable(self.other)

    @property
    def processor_ratio(self) -> float:
        """The same with the processors' seconds of the process itself."""
        return median_processor(self.ours) / median_processor(self.other)

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None where there is none."""
        return None if self.bound is None else self.ratio <= self.bound


def median_wall(runs: Sequence[Measurement]) -> float:
    """Median of the seconds."""
    return statistics.median(run.wall_seconds for run in runs)


def median_processor(runs: Sequence[Measurement]) -> float:
    """Median of the processors' seconds."""
    return statistics.median(run.cpu_seconds for run in runs)


def median_durable(runs: Sequence[Measurement]) -> float:
    """Median of the seconds until the output was on the disk."""
    return statistics.median(run.wall_seconds + run.settle_seconds for run in runs)


class Rounds:
    """Runs trials in turn, as often as asked; each round begins with another one."""

    def __init__(self, count: int, say: Say) -> None:
        self._count, self._say = count, say

    def __call__(
        self, title: str, trials: dict[str, Trial], before: Callable[[int], None] = lambda _: None
    ) -> dict[str, tuple[Measurement, ...]]:
        """The measurements of each trial; `before` is called with the number of each round."""
        results: dict[str, list[Measurement]] = {name: [] for name in trials}
        for number in range(self._count):
            before(number)
            names = list(trials)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                run = trials[name]()
                results[name].append(run)
                settled = f" + {run.settle_seconds:.2f} s to the disk" if run.settle_seconds else ""
                self._say(f"{title}, {name}: {run.wall_seconds:.2f} s{settled}")
        return {name: tuple(runs) for name, runs in results.items()}


def scattered_writes(domains: Sequence[BlockDomain], size: int, seed: int) -> None:
    """Change the same random pieces of 1 MiB of every domain's disk of `size` bytes."""
    places = random.Random(seed).sample(range(size // MIB), CHANGED // MIB)
    for domain in domains:
        for place in places:
            domain.write_random("vda", place * MIB, MIB, seed=seed << 32 | place)
        domain.flush("vda")


def rows_of_disk(rounds: Rounds, engine: Engine, peer: Peer, data_bytes: int, disk_size: int) -> Iterator[Row]:
    """Full backups, restore, verify and incremental backups of one disk, held by both domains."""
    encrypted = EncryptedEngine(engine.domain)
    both = rounds("full lz4, encrypted and not", _fulls("lz4", engine, encrypted))
    yield Row(7, "full, lz4, encrypted", "not encrypted", both[encrypted.name], both[engine.name], data_bytes, 1.25)
    encrypted.forget_backups()

    bucket = S3Engine(engine.domain)
    try:
        both = rounds("full lz4, to S3 and to a directory", _fulls("lz4", engine, bucket))
    finally:
        bucket.close()
    yield Row(9, "full, lz4, to S3", "a directory", both[bucket.name], both[engine.name], data_bytes, 1.5)

    lz4 = rounds("full lz4", _fulls("lz4", engine, peer))
    yield _row(2, "full, lz4", lz4, peer.name, data_bytes, 1 / 3)

    copies = [RawCopy(engine.domain, flush) for flush in (False, True)]
    full = rounds("full none", _fulls("none", engine, peer, *copies))
    yield _row(1, "full, no compression", full, peer.name, data_bytes, 1 / 3)
    for copy in copies:
        yield _row(1, "full, no compression", full, copy.name, data_bytes, 1.3)

    restored = rounds("restore", {engine.name: engine.restore, peer.name: peer.restore})
    run_tool(["qemu-img", "compare", engine.restored_image(), peer.restored_image()])
    engine.forget_restored()
    peer.forget_restored()
    yield _row(5, "restore to qcow2", restored, "virtnbdrestore", data_bytes, 1 / 2)

    verified = rounds("verify", {engine.name: engine.verify, peer.name: peer.verify})
    yield _row(6, "verify data", verified, "Adler-32", data_bytes, 1 / 2)

    changed = _incrementals(rounds, "incremental", engine, peer, disk_size)
    yield _row(3, "incremental, 64 MiB changed", changed, peer.name, CHANGED, 1 / 2)


def rows_of_sizes(rounds: Rounds, hypervisor: Hypervisor) -> Iterator[Row]:
    """Incremental backups of the same change on a small and on a large sparse disk."""
    for size in (SMALL_DISK, LARGE_DISK):
        title = f"64 MiB changed of {size // GIB} GiB"
        with pair(hypervisor, size) as (engine, peer):
            engine.full("none")
            peer.full("none")
            changed = _incrementals(rounds, title, engine, peer, size)
        yield _row(4, title, changed, peer.name, CHANGED, None)


@contextmanager
def pair(
    hypervisor: Hypervisor, size: int = 0, images: tuple[Path | None, Path | None] = (None, None)
) -> Iterator[tuple[Engine, Peer]]:
    """A domain for each side: with an empty disk of `size` bytes, or with a given image.

    Two, because virtnbdbackup refuses a domain with checkpoints that are not its own.
    """
    with (
        BlockDomain(hypervisor, [DiskSpec("vda", size, source=images[0])]) as ours,
        BlockDomain(hypervisor, [DiskSpec("vda", size, source=images[1])]) as other,
    ):
        engine, peer = Engine(ours), Peer(other)
        try:
            yield engine, peer
        finally:
            engine.close()
            peer.close()


def _fulls(compression: str, *contenders: Contender | RawCopy) -> dict[str, Trial]:
    return {each.name: functools.partial(each.full, compression) for each in contenders}


def _incrementals(
    rounds: Rounds, title: str, engine: Engine, peer: Peer, size: int
) -> dict[str, tuple[Measurement, ...]]:
    """Incremental backups by both, each after the same change of both disks of `size` bytes."""

    def change(number: int) -> None:
        scattered_writes((engine.domain, peer.domain), size, number)

    trials: dict[str, Trial] = {engine.name: engine.incremental, peer.name: peer.incremental}
    return rounds(title, trials, change)


def _row(
    number: int,
    title: str,
    results: dict[str, tuple[Measurement, ...]],
    other: str,
    amount: int,
    bound: float | None,
) -> Row:
    ours = results[Engine.name]
    theirs = results[other] if other in results else results[Peer.name]
    if not ours or not theirs:
        raise BenchmarkError(f"{title}: nothing was measured")
    return Row(number, title, other, ours, theirs, amount, bound)
