# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An export beside the engine's own reading: sequential throughput, and the latency of small requests.

    /usr/bin/python3 tests/benchmarks/exports.py [--size-mib 2048] [--rounds 3]

A repository gets a disk of program files and random bytes, plain or encrypted. In turn, the engine reads all of it as a restore
does, and nbdcopy reads it from an export. The exit code is 1 if no form of nbdcopy reaches 0.6 of the engine's speed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins/module_utils"))

import nbd  # noqa: E402
from disk_image import MIB, ProgramFiles  # noqa: E402
from lab.process import run_tool  # noqa: E402

from _cbt.control import Control  # noqa: E402
from _cbt.grid import BLOCK_SIZE, BLOCKS_AT_ONCE  # noqa: E402
from _cbt.operations.export.export import EndRequest, ExportRequest, UnixAddress, end, export  # noqa: E402
from _cbt.parallel import default_workers, ordered_results  # noqa: E402
from _cbt.repository.creation import open_or_create  # noqa: E402
from _cbt.repository.format import codecs, manifests, names  # noqa: E402
from _cbt.repository.format.manifests import DiskRecord, RestorePoint  # noqa: E402
from _cbt.repository.format.maps import MapBuilder, Run, portions  # noqa: E402
from _cbt.repository.format.packs import Encoded  # noqa: E402
from _cbt.repository.location import RepositoryLocation  # noqa: E402
from _cbt.repository.repository import Repository, open_repository  # noqa: E402

BOUND = 0.6
UUID = "6f1d0a52-9a3c-4c0e-8a53-0d1b1f6f4a11"
FORMS = {"1 connection, 1 MiB": ["--connections=1", "--request-size=1048576"], "as it comes": []}


def fill(repository: Repository, size: int) -> None:
    """Store a point of a disk: by turns program files and random bytes."""
    rng, encode = random.Random(1), codecs.encoder("lz4")
    point_id = manifests.new_id(datetime.datetime.now(datetime.UTC))
    writer, builder = repository.writer(), MapBuilder(size)
    with ProgramFiles() as programs:
        for first in range(0, size // BLOCK_SIZE, BLOCKS_AT_ONCE):
            blocks = []
            for block in range(first, first + BLOCKS_AT_ONCE):
                data = programs.stream.read(BLOCK_SIZE) if block // BLOCKS_AT_ONCE % 2 else rng.randbytes(BLOCK_SIZE)
                data = data.ljust(BLOCK_SIZE, b"x")
                blocks.append(Encoded(repository.keys.block_id(data), *encode(data), len(data)))
            builder.put(first, len(blocks), *writer.append(blocks))
    extents = builder.finish(writer.finish())
    files = repository.put_files(names.point_folder(UUID, point_id), {"vda.map": extents.encode()})
    disk = DiskRecord("vda", size, "full", "", files["vda.map"], None, {}, {})
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    given = (point_id, repository.id, "web1", UUID, created, None, None, None, point_id, "crash", (disk,), {})
    repository.publish(RestorePoint(*given, False, {}, False, "bench", {}))


def read_all(repository: Repository) -> None:
    """Read and prove every block, as a restore does."""
    extents = repository.read_map(repository.points_of().points[-1], "vda")

    @contextlib.contextmanager
    def worker() -> Iterator[Callable[[Run], int]]:
        yield lambda run: sum(map(len, repository.reader.disk_blocks(run, extents.size)))  # type: ignore[arg-type]

    with ordered_results(portions(extents.runs()), worker, default_workers(), Control()) as results:
        assert sum(results) == extents.size


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def latencies(uri: str) -> Iterator[tuple[str, float]]:
    """The median in seconds of requests at depth 1."""
    client, rng = nbd.NBD(), random.Random(2)
    client.connect_uri(uri)
    size = client.get_size()
    for name, length, offsets in (
        ("random 4 KiB", 4096, [rng.randrange(size // 4096) * 4096 for _number in range(2000)]),
        ("random 64 KiB", BLOCK_SIZE, [rng.randrange(size // BLOCK_SIZE) * BLOCK_SIZE for _number in range(2000)]),
        ("sequential 4 KiB", 4096, list(range(0, 32 * MIB, 4096))),
    ):
        times = sorted(timed(lambda at=offset, count=length: client.pread(count, at)) for offset in offsets)
        yield name, times[len(times) // 2]
    client.shutdown()


def compare(folder: Path, size: int, rounds: int, passphrase: str | None) -> bool:
    """Print the figures of one repository. Return whether the export is fast enough."""
    location = RepositoryLocation(str(folder / ("encrypted" if passphrase else "plain")), passphrase=passphrase)
    open_or_create(location)
    fill(open_repository(location), size)
    address = UnixAddress(str(folder), os.geteuid(), os.getegid(), 0o600)
    name = f"bench-{os.getpid()}"
    served = export(open_repository(location), location, ExportRequest("web1", address, name=name), Control()).export
    try:
        uri = served.plan.uri("vda")
        best = dict.fromkeys(["engine", *FORMS], float("inf"))
        for _round in range(rounds):
            best["engine"] = min(best["engine"], timed(lambda: read_all(open_repository(location))))
            for form, words in FORMS.items():
                best[form] = min(best[form], timed(lambda given=words: run_tool(["nbdcopy", *given, uri, "null:"])))
        print(f"{'encrypted' if passphrase else 'plain'}, {size // MIB} MiB, best of {rounds}")
        for each, seconds in best.items():
            print(
                f"  {each:20}  {seconds:6.2f} s  {size / MIB / seconds:6.0f} MiB/s  {best['engine'] / seconds:5.2f} x"
            )
        for each, seconds in latencies(uri):
            print(f"  {each:20}  {seconds * 1e6:6.0f} us")
        return min(best[form] for form in FORMS) <= best["engine"] / BOUND
    finally:
        end(open_repository(location), EndRequest(name))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            compare(Path(folder), options.size_mib * MIB, options.rounds, passphrase)
            for passphrase in (None, "a passphrase of the benchmark")
        ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
