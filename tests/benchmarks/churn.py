"""Fourteen days of three domains cloned from one image: what the engine stores, and what virtnbdbackup stores.

    /usr/bin/python3 tests/benchmarks/churn.py [--days 14] [--size-mib 1024]

Each day every domain gets the same package update, at places of its own, log lines of its own, and random writes of 8 KiB to
a database. The engine backs all three up into one repository, virtnbdbackup takes a compressed full backup of each and then
compressed incremental ones. At the end the engine verifies every byte and restores one domain, which is compared with its disk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import libvirt  # noqa: E402
from contenders import Engine, Peer  # noqa: E402
from disk_image import MIB, ProgramFiles  # noqa: E402
from lab.domain import BlockDomain, DiskSpec  # noqa: E402
from lab.errors import LabError  # noqa: E402
from lab.hypervisor import Hypervisor  # noqa: E402
from lab.process import run_tool  # noqa: E402
from timed import BenchmarkError, measure, measure_json  # noqa: E402

CLONES = 3
BOUND = 0.6
KIB = 1 << 10
_UNIT = 64 * KIB
_UPDATE = 16 * MIB
_PIECE = MIB
_LOG = 4 * MIB
_DATABASE = 128 * MIB
_PAGE = 8 * KIB
_PAGES = 40  # written to the database on one day


@dataclass(frozen=True)
class Layout:
    """Where things are on the disk: programs from the start, then the database, then the logs. Bytes."""

    programs: int
    days: int

    @property
    def logs(self) -> int:
        return self.programs + _DATABASE

    @property
    def size(self) -> int:
        return self.logs + self.days * _LOG + 64 * MIB


def _read(stream: BinaryIO, length: int) -> bytes:
    """The next program files; random bytes where this machine has no more."""
    data = stream.read(length)
    return data + os.urandom(length - len(data))


def _build(raw: Path, layout: Layout, stream: BinaryIO) -> None:
    chance = random.Random(0)
    with raw.open("wb") as disk:
        for _piece in range(layout.programs // (4 * MIB)):
            disk.write(_read(stream, 4 * MIB))
        for _page in range(_DATABASE // _PAGE):
            disk.write(_page_of(chance))
        disk.truncate(layout.size)


def _page_of(chance: random.Random) -> bytes:
    """A page of a database: half of it does not compress."""
    return chance.randbytes(_PAGE // 2) + b"%08d" % chance.randrange(100) * (_PAGE // 16)


def _log_of(domain: int, day: int) -> bytes:
    chance = random.Random(domain << 32 | day)
    lines = []
    length = 0
    while length < _LOG:
        lines.append(
            b"day %d host %d service[%d]: request %016x took %d ms\n"
            % (day, domain, chance.randrange(1 << 15), chance.getrandbits(64), chance.randrange(999))
        )
        length += len(lines[-1])
    return b"".join(lines)[:_LOG]


def _live(day: int, number: int, domains: tuple[BlockDomain, ...], layout: Layout, update: bytes) -> None:
    """One day of one machine, which exists once for each contender."""
    chance = random.Random(number << 32 | day)
    places = chance.sample(range(layout.programs // _PIECE), _UPDATE // _PIECE)
    pages = [(chance.randrange(_DATABASE // _PAGE) * _PAGE, _page_of(chance)) for _page in range(_PAGES)]
    log = _log_of(number, day)
    for domain in domains:
        for index, place in enumerate(places):
            domain.write_bytes("vda", place * _PIECE, update[index * _PIECE : (index + 1) * _PIECE])
        for offset, page in pages:
            domain.write_bytes("vda", layout.programs + offset, page)
        domain.write_bytes("vda", layout.logs + day * _LOG, log)
        domain.flush("vda")


def _occupied(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _machines(hypervisor: Hypervisor, raw: Path) -> Iterator[list[tuple[Engine, Peer]]]:
    """The clones, each as a domain for the engine and one for the peer; the engines share a repository."""
    folder = hypervisor.folder()
    with contextlib.ExitStack() as stack:
        machines = []
        for number in range(CLONES):
            images = [folder / f"{name}-{number}.qcow2" for name in ("ours", "peer")]
            for image in images:
                run_tool(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image])
                image.chmod(0o644)
            ours, theirs = (BlockDomain(hypervisor, [DiskSpec("vda", source=image)]) for image in images)
            engine, peer = Engine(ours), Peer(theirs)
            stack.callback(peer.close)
            stack.callback(engine.close)
            engine.backup_folder = folder / "repository"
            machines.append((engine, peer))
        yield machines


def _back_up(day: int, engine: Engine, peer: Peer) -> None:
    _measurement, done = measure_json(engine.command("backup", "--compression", "lz4"))
    if done["disks"]["vda"]["mode"] != ("incremental" if day else "full"):
        raise BenchmarkError(f"day {day}: {done}")
    words: list[str | Path] = ["-d", peer.domain.name, "-l", "inc" if day else "full", "-z", "-o", peer.backup_folder]
    measure(["virtnbdbackup", *words])


def _prove(engine: Engine) -> None:
    """Everything verifies, and the last point is the disk."""
    measure(engine.command("verify"))
    engine.restore_folder.mkdir()
    measure(engine.command("restore", "--dest", engine.restore_folder))
    engine.domain.destroy()
    run_tool(["qemu-img", "compare", engine.restored_image(), engine.domain.image("vda")])
    engine.forget_restored()


def compare(hypervisor: Hypervisor, layout: Layout) -> float:
    """Play all days, print what is stored after each, and return the ratio at the end."""
    folder = hypervisor.folder()
    raw = folder / "image.raw"
    with ProgramFiles() as programs:
        _build(raw, layout, programs.stream)
        updates = [_read(programs.stream, _UPDATE) for _day in range(layout.days)]
    with _machines(hypervisor, raw) as machines:
        raw.unlink()
        print("day   ours MiB   peer MiB   ratio   of the day alone", flush=True)
        before = (0, 0)
        for day in range(layout.days):
            for number, (engine, peer) in enumerate(machines):
                if day:
                    _live(day, number, (engine.domain, peer.domain), layout, updates[day])
                _back_up(day, engine, peer)
            ours = _occupied(machines[0][0].backup_folder)
            theirs = sum(_occupied(peer.backup_folder) for _engine, peer in machines)
            alone = (ours - before[0]) / (theirs - before[1])
            print(f"{day + 1:3d} {ours / MIB:10.1f} {theirs / MIB:10.1f} {ours / theirs:7.3f} {alone:7.3f}", flush=True)
            before = (ours, theirs)
        for engine, _peer in machines:
            _prove(engine)
        print(
            f"bytes: ours {ours}, virtnbdbackup {theirs}, ratio {ours / theirs:.3f}, bound {BOUND}: {'met' if ours <= theirs * BOUND else 'NOT MET'}"
        )
        shutil.rmtree(machines[0][0].backup_folder)
    return ours / theirs


def main() -> None:
    """Run it; ends with 1 if something could not be measured, or if the bound is missed: bytes do not depend on how busy a machine is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--size-mib", type=int, default=1024, help="program files on the image (1024)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("churn: run it as root")
    try:
        with Hypervisor() as hypervisor:
            ratio = compare(hypervisor, Layout(options.size_mib // 4 * 4 * MIB, options.days))
    except (BenchmarkError, LabError, OSError, libvirt.libvirtError) as error:
        sys.exit(f"churn: {error}")
    if ratio > BOUND:
        sys.exit(f"churn: the bound of {BOUND} is not met")


if __name__ == "__main__":
    main()
