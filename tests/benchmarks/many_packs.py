"""What a repository of very many packs costs: to tell of it, to begin a backup, to apply retention, to reclaim space.

    /usr/bin/python3 tests/benchmarks/many_packs.py [--packs 1000000] [--points 10] [--json]

There is no data: packs exist by name only, made up whenever they are asked for, while manifests, maps and hooks are real and in
memory (/dev/shm). One pack in a hundred is named by nothing. Each step is a process of its own, whose peak is its own. Ends with 1
if one needs more memory than the bound.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins" / "module_utils"))

from _cbt.operations.info import describe_repository, list_points  # noqa: E402
from _cbt.operations.upkeep.retention import RetentionRequest, retention  # noqa: E402
from _cbt.operations.upkeep.retention_rules import Rules  # noqa: E402
from _cbt.repository.dedup import dedup  # noqa: E402
from _cbt.repository.format import hooks, names  # noqa: E402
from _cbt.repository.format.hooks import PackHooks  # noqa: E402
from _cbt.repository.format.manifests import DiskRecord, RestorePoint  # noqa: E402
from _cbt.repository.format.maps import ExtentMap, MapBuilder  # noqa: E402
from _cbt.repository.format.packs import PackRef  # noqa: E402
from _cbt.repository.records import damage  # noqa: E402
from _cbt.repository.repository import Repository  # noqa: E402
from _cbt.repository.sharing import leases  # noqa: E402
from _cbt.repository.stores.base import Entry  # noqa: E402
from _cbt.repository.stores.directory import DirectoryStore  # noqa: E402

PER_DOMAIN = 10_000  # packs of one domain: a disk of 625 GiB
BLOCKS = 1024
SIZE = 64 << 20
UNNAMED = 100  # one pack in so many
BOUND = 512  # MiB


def pack(number: int) -> PackRef:
    """The pack with this number."""
    return PackRef(hashlib.md5(number.to_bytes(8, "big"), usedforsecurity=False).digest(), SIZE, BLOCKS)


class Store(DirectoryStore):
    """A directory but for its packs, which are made up."""

    def __init__(self, root: str, packs: int) -> None:
        super().__init__(root)
        self._packs, self.asked, self.gone = packs, 0, 0

    def list(self, prefix: str) -> Iterator[str]:
        if prefix == "packs":
            return (pack(number).name for number in range(self._packs))
        return super().list(prefix)

    def entries(self, prefix: str) -> Iterator[Entry]:
        if prefix == "packs":
            return (Entry(name, SIZE, 0.0) for name in self.list(prefix))
        return super().entries(prefix)

    def size(self, name: str) -> int:
        self.asked += 1
        return SIZE if name.startswith("packs/") else super().size(name)

    def delete(self, name: str) -> None:
        if name.startswith("packs/"):
            self.gone += 1
        else:
            super().delete(name)


def _whole(refs: list[PackRef]) -> ExtentMap:
    """The map of a disk that was read once."""
    builder = MapBuilder(len(refs) * BLOCKS << 16)
    for index, ref in enumerate(refs):
        builder.put(index * BLOCKS, BLOCKS, ref.id, 0)
    return builder.finish({ref.id: ref for ref in refs})


def _point(repository: Repository, domain: int, day: int, whole: ExtentMap, chance: random.Random) -> None:
    """A point whose map has a thousand blocks of its own."""
    builder = MapBuilder(whole.size, whole)
    for block in sorted(chance.sample(range(whole.size >> 16), 1000 if day else 0)):
        builder.put(block, 1, chance.choice(whole.packs).id, chance.randrange(BLOCKS))
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(days=day)
    uuid, name = f"{domain:08x}-0000-4000-8000-000000000000", f"{at:%Y%m%dT%H%M%SZ}-{day:08x}"
    files = repository.put_files(
        names.point_folder(uuid, name), {"vda.map": builder.finish({ref.id: ref for ref in whole.packs}).encode()}
    )
    disk = DiskRecord("vda", whole.size, "incremental", "", files["vda.map"], None, {}, {})
    made = RestorePoint(
        name, repository.id, f"machine{domain}", uuid, at.isoformat(), None, None, None, name, "crash", (disk,), {}, False, {}, False, "", {}
    )  # fmt: skip
    repository.publish(made)


def build(repository: Repository, packs: int, per_domain: int) -> None:
    """Points and hooks of all domains."""
    chance = random.Random(0)
    for domain, start in enumerate(range(0, packs, PER_DOMAIN)):
        numbers = range(start, min(packs, start + PER_DOMAIN))
        refs = [pack(number) for number in numbers if number % UNNAMED]
        whole = _whole(refs)
        for day in range(per_domain):
            _point(repository, domain, day, whole, chance)
        for index in range(0, len(refs), hooks.PACKS_PER_OBJECT):
            found = [
                PackHooks(ref, tuple(sorted(chance.getrandbits(61) for _hook in range(24))))
                for ref in refs[index : index + hooks.PACKS_PER_OBJECT]
            ]
            repository.put_object(
                names.hooks_of_run(f"{domain:08x}-0000-4000-8000-000000000000", f"20260101T000000Z-{index:08x}", 0),
                hooks.encode(found),
            )


def information(repository: Repository) -> str:
    """What cbt_backup_info asks of a repository."""
    facts = describe_repository(repository)
    found, _damaged = list_points(repository)
    return f"{facts.packs} packs, {len(found)} points"


def begin(repository: Repository) -> str:
    """All that a backup asks before it reads the disk."""
    with leases.held(repository, "backup"):
        last = repository.points_of().points[-1]
        base = repository.read_map(last, "vda")
        damages = {**damage.read_all(repository), **damage.unsound_packs(repository, base.packs)}
        dedup.deduplicator(repository, dedup.REPOSITORY, last.uuid, damages)
    return f"{len(base.packs)} packs of the base"


def plan(repository: Repository) -> str:
    """Retention in check mode."""
    result = retention(repository, RetentionRequest(Rules(last=7)), check_only=True)
    return f"{len(result.removed)} points would go"


def collect(repository: Repository) -> str:
    """Retention, and what nothing names is deleted at once."""
    result = retention(repository, RetentionRequest(Rules(last=7), grace=0.0))
    return f"{len(result.removed)} points and {result.collected.deleted if result.collected else 0} objects deleted"


STEPS: dict[str, Callable[[Repository], str]] = {
    "information": information,
    "first backup's start": begin,
    "next backup's start": begin,
    "retention, planned": plan,
    "retention": collect,
}


def _step(name: str, folder: str, packs: int, per_domain: int) -> None:
    repository = Repository(Store(folder, packs), "0" * 32)
    started, computed = time.monotonic(), time.process_time()
    what = STEPS[name](repository) if name else build(repository, packs, per_domain)
    seconds, processor = time.monotonic() - started, time.process_time() - computed
    memory = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmHWM:")
    )
    print(
        json.dumps(
            {
                "step": name,
                "seconds": round(seconds, 2),
                "processor": round(processor, 2),
                "mib": memory >> 10,
                "what": what,
            }
        )
    )


def measure(packs: int, per_domain: int) -> list[dict[str, object]]:
    """Carry all steps out; what each took."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="kvm-cbt-") as folder:
        figures = []
        for name in ("", *STEPS):
            words = [
                sys.executable,
                __file__,
                "--packs",
                str(packs),
                "--points",
                str(per_domain),
                "--step",
                name,
                "--folder",
                f"{folder}/repository",
            ]
            printed = subprocess.run(
                words, check=True, stdout=subprocess.PIPE, env={"XDG_CACHE_HOME": f"{folder}/cache"}, text=True
            ).stdout
            figures.append(json.loads(printed))
        return figures[1:]


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packs", type=int, default=1_000_000, help="in the repository (1000000)")
    parser.add_argument("--points", type=int, default=10, help="of each domain, which has 10000 packs (10)")
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        return _step(options.step, options.folder, options.packs, options.points)
    figures = measure(options.packs, options.points)
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{options.packs} packs\n{'step':22s} {'seconds':>8s} {'processor':>9s} {'MiB':>5s}  outcome")
    for each in figures:
        print(f"{each['step']:22s} {each['seconds']:8} {each['processor']:9} {each['mib']:5}  {each['what']}")
    if max(cast(int, each["mib"]) for each in figures) > BOUND:
        sys.exit(f"many_packs: the bound of {BOUND} MiB is not met")


if __name__ == "__main__":
    main()
