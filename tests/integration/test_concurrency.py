# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of three domains, retention with compaction and collection, and verification, each in processes of their own and killed at random.

Every point that is published must be true, and in the end no pack may hold a block that no point needs, or one that lies elsewhere as
well, so that the repository is about as small as a fresh copy of what is left.

The same holds where the clocks of the store and of each host are set at random, so that they part by up to three hours, or clients set the
times of files, and some puts hang longer than a lease and a grace period.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import random
import signal
import threading
import time
import typing as t
from pathlib import Path

import fast_clocks
import pytest
import soaks
from fast_clocks import Clocks
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from module_process import ModuleProcess, collection_path

from _cbt.control import Control
from _cbt.operations.backup import run as backup_run
from _cbt.operations.copy import CopyRequest, copy
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.tracking import tracking
from _cbt.operations.upkeep.compaction import Candidates, compact
from _cbt.repository.creation import open_or_create
from _cbt.repository.dedup import dedup
from _cbt.repository.format.packs import PackRef
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.sharing import leases, publishing
from _cbt.repository.sharing.collector import Collector
from _cbt.repository.sharing.leases import ASTRAY, LAPSE
from _cbt.repository.stores import directory

MIB = 1 << 20
SIZE = 12 * MIB
# Safety rests on the order of requests, not on this; but what is removed has to be deletable while backups that named it still run.
GRACE = 2
KEPT = 3
DOMAINS = 3
HOSTS = [*map(str, range(DOMAINS)), "retention 0", "retention 1", "verify"]
# Where clocks are set: more than clocks part by, and five minutes.
LONG_GRACE = 4 * 3600


class _Storm:
    """What all of them share: the repository, until when, and what went wrong."""

    def __init__(self, location: Path, workspace: Path, seconds: float, clocks: Clocks | None = None) -> None:
        made = open_or_create(str(location))
        assert made is not None
        self.repository: Repository = made
        self.workspace = workspace
        self.clocks = clocks
        self.grace = GRACE if clocks is None else LONG_GRACE
        self.seconds = seconds
        self.until = time.monotonic() + seconds
        self.truth: dict[str, str] = {}
        self.outcomes: t.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.reclaimed = self.rewritten = 0

    def run(
        self, chance: random.Random, host: str, module: str, kills: float, usual: float, **arguments: t.Any
    ) -> dict[str, t.Any] | None:
        """One run of a module, killed with this probability at some moment of its ``usual`` seconds; its answer, if it had one."""
        before = "" if self.clocks is None else self.clocks.code(host)
        process = ModuleProcess(
            self.workspace, module, {"repository": self.repository.store.location, **arguments}, before=before
        )
        if chance.random() < kills:
            time.sleep(chance.uniform(0.3, usual * 0.8))
            process.signal(signal.SIGKILL)
        result = process.result_if_any()
        self.outcomes[f"{module} {'killed' if result is None else 'failed' if result.get('failed') else 'done'}"] += 1
        if result is None and self.clocks is None:
            self._bury(process.process.pid)
        return result

    def _bury(self, process: int) -> None:
        """As though the dead process's lease had lapsed: else it would spare all that is younger for half an hour."""
        for session in leases.lease_holders(self.repository):
            if session.process == process:
                self.repository.store.delete(f"leases/{session.id}")


def _back_up(storm: _Storm, domain: BlockDomain, host: str, scratch: Path, chance: random.Random) -> None:
    disk = bytearray(SIZE)
    known: set[str] = set()
    usual = 4.0
    while time.monotonic() < storm.until:
        for _number in range(chance.randrange(1, 4)):
            first, length = chance.randrange(SIZE // 65536 - 24) * 65536, chance.choice([1, 5, 24]) * 65536
            # Of few seeds: blocks come again, on other disks too, and are found where they lie, in packs that may be about to go.
            disk[first : first + length] = domain.write_random("vda", first, length, chance.randrange(12))
        start = time.monotonic()
        mode = chance.choice(["auto", "auto", "auto", "full"])
        result = storm.run(
            chance, host, "cbt_backup", 0.4, usual, domain=domain.name, scratch_dir=str(scratch), mode=mode
        )
        if result is not None:
            usual = time.monotonic() - start
            if result.get("failed"):
                storm.faults.append(f"{domain.name}: {result['msg']}")
        for point in storm.repository.points_of(domain.uuid).points:
            if point.id not in known:
                known.add(point.id)
                storm.truth[point.id] = hashlib.sha256(disk).hexdigest()


def _retain(storm: _Storm, host: str, chance: random.Random) -> None:
    while time.monotonic() < storm.until:
        result = storm.run(
            chance,
            host,
            "cbt_retention",
            0.4,
            2.0,
            keep_last=KEPT,
            grace=storm.grace,
            confirm_shrink=True,
            compact_below=60,
        )
        if result is not None and result.get("failed"):
            storm.faults.append(f"retention: {result['msg']}")
        elif result is not None:
            storm.reclaimed += result["reclaimed_bytes"]
            storm.rewritten += result["rewritten_bytes"]


def _verify(storm: _Storm, chance: random.Random) -> None:
    while time.monotonic() < storm.until:
        result = storm.run(chance, "verify", "cbt_verify", 0.3, 2.0, restore_points=["all"], fail_on_damage=False)
        if result is None or result.get("failed"):
            continue  # killed, or there is nothing to verify yet
        published = {point.id for point in storm.repository.points_of().points}
        storm.faults += [
            f"verify: {each}" for each in result["restore_points"] if each["status"] != "ok" and each["id"] in published
        ]


def _set_clocks(storm: _Storm, clocks: Clocks, chance: random.Random) -> None:
    offsets: dict[str, float] = {}
    while time.monotonic() < storm.until:
        offsets[chance.choice([*HOSTS, fast_clocks.STORE, fast_clocks.STORE])] = chance.uniform(-ASTRAY, ASTRAY) / 2
        offsets[fast_clocks.CLIENTS] = chance.choice([0.0, 1.0])
        clocks.set(offsets)
        time.sleep(chance.uniform(0.2, 2.0))
    clocks.set({})


def _settle(repository: Repository, grace: float) -> None:
    """Collections long after everybody's death. What a compaction leaves behind goes in the two that follow."""
    for number, compacts in enumerate((True, True, False, False), 1):
        with leases.held(repository, "retention") as lease:
            if compacts:
                compact(lease, Candidates(100, repository.points_of().points), Control())
            Collector(repository, lease.now() + number * (3 * LAPSE + ASTRAY + grace), grace).collect(
                lease, confirm_shrink=True
            )
            dedup.tidy(repository, repository.points_of().points)


def _stored(repository: Repository) -> dict[str, int]:
    """Bytes of all objects, by the first part of their names."""
    found: t.Counter[str] = collections.Counter()
    for path in filter(Path.is_file, Path(repository.store.location).rglob("*")):
        found[path.relative_to(repository.store.location).parts[0]] += path.stat().st_size
    return dict(found)


def _waste(repository: Repository) -> tuple[int, int]:
    """Blocks in packs that no restore point needs, and those that are there once more."""
    named: dict[PackRef, set[int]] = {}
    for point in repository.points_of().points:
        for disk in point.disks:
            for run in repository.read_map(point, disk.target).runs():
                named.setdefault(run.pack, set()).update(range(run.ordinal, run.ordinal + run.count))
    ids = [repository.reader.directory(ref).digest(ordinal) for ref, ordinals in named.items() for ordinal in ordinals]
    return sum(ref.blocks for ref in named) - len(ids), len(ids) - len(set(ids))


def _untrue(storm: _Storm, names: t.Mapping[str, str]) -> list[str]:
    found = []
    for point in open_repository(storm.repository.store.location).points_of().points:
        folder = storm.workspace / point.id
        folder.mkdir()
        result = restore(
            storm.repository, RestoreRequest(names[point.uuid], restore_point=point.id, dest=str(folder), format="raw")
        )
        path = Path(result.disks[0].path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != storm.truth[point.id]:
            found.append(point.id)
        path.unlink()
        folder.rmdir()
    return found


def _run(hypervisor: Hypervisor, workspace: Path, seconds: float, clocks: Clocks | None = None) -> _Storm:
    """All of it, and what must hold afterwards."""
    collection_path(workspace)  # before all of them make it at once
    with contextlib.ExitStack() as stack:
        domains = [stack.enter_context(BlockDomain(hypervisor, [DiskSpec("vda", SIZE)])) for _number in range(DOMAINS)]
        storm = _Storm(workspace / "repository", workspace, seconds, clocks)
        _let_loose(storm, domains)
    _check(storm, {domain.uuid: domain.name for domain in domains})
    return storm


def _let_loose(storm: _Storm, domains: t.Sequence[BlockDomain]) -> None:
    """All of them at once, until the time is over."""
    work: list[t.Callable[[], None]] = []
    for number, domain in enumerate(domains):
        scratch = storm.workspace / f"scratch-{number}"
        scratch.mkdir()
        scratch.chmod(0o711)
        work.append(functools.partial(_back_up, storm, domain, str(number), scratch, random.Random(number)))
    work.append(functools.partial(_retain, storm, "retention 0", random.Random(10)))
    work.append(functools.partial(_verify, storm, random.Random(11)))
    if storm.clocks is not None:
        work.append(functools.partial(_retain, storm, "retention 1", random.Random(12)))
        work.append(functools.partial(_set_clocks, storm, storm.clocks, random.Random(13)))
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _check(storm: _Storm, names: t.Mapping[str, str]) -> None:
    """Every point is true, and nothing is left that none needs."""
    assert storm.faults == []
    assert _untrue(storm, names) == []
    _settle(storm.repository, storm.grace)
    assert _untrue(storm, names) == []
    found = storm.repository.points_of().points
    needed = {name for point in found for name in publishing.needed(storm.repository, point)}
    stored = {*storm.repository.store.list("packs"), *storm.repository.store.list("points")}
    fresh = open_or_create(str(storm.workspace / "fresh"))
    assert fresh is not None
    assert len(copy(storm.repository, fresh, CopyRequest()).copied) == len(found)
    used, least = _stored(storm.repository), _stored(fresh)
    ratio = sum(used.values()) / sum(least.values())
    print(f"\n{storm.seconds:.0f} s: {dict(storm.outcomes)}; {len(storm.truth)} points seen, {len(found)} left")
    print(
        f"stored {used}, {ratio:.3f} x a fresh copy {least}; meanwhile {storm.reclaimed >> 10} KiB reclaimed and {storm.rewritten >> 10} KiB compacted"
    )
    # A copy is made point by point, each of which finds most of what the others brought, as backups do: merging finds all.
    assert ratio <= 1.05
    assert _waste(storm.repository) == (0, 0)
    assert stored - needed == {f"{point.folder}/manifest.json" for point in found}


@pytest.mark.soak("storm")
def test_backups_retention_and_verification_at_once_keep_every_point_true(
    hypervisor: Hypervisor, workspace: Path
) -> None:
    storm = _run(hypervisor, workspace, soaks.count("storm"))
    assert storm.outcomes["cbt_backup killed"] and storm.outcomes["cbt_retention killed"] and storm.reclaimed


@pytest.mark.soak("clocks")
def test_where_clocks_are_set_and_puts_hang_every_point_is_true(
    hypervisor: Hypervisor, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(workspace / "clocks.json", hangs=0.04, longest=2 * LAPSE + LONG_GRACE)
    clocks.set({})
    right = dataclasses.replace(clocks, hangs=0.0)
    fast_clocks.use(right, "this one", (leases, directory, backup_run, tracking), monkeypatch.setattr)
    storm = _run(hypervisor, workspace, soaks.count("clocks"), clocks)
    assert storm.outcomes["cbt_backup done"] and storm.outcomes["cbt_retention done"]
