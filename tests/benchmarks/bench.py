"""The engine against virtnbdbackup and nbdcopy, in one run on one machine and one disk.

    /usr/bin/python3 tests/benchmarks/bench.py [--size-gib 4] [--rounds 3] [--json FILE] [--quick]

Needs root, libvirt, QEMU, virtnbdbackup and nbdcopy of the system, and about 7 times the size on
the file system of /var/tmp. Ratios are what counts. A missed bound is reported, it is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import libvirt  # noqa: E402
from contenders import Engine  # noqa: E402
from disk_image import MIB, build  # noqa: E402
from lab.domain import BlockDomain, DiskSpec  # noqa: E402
from lab.errors import LabError  # noqa: E402
from lab.hypervisor import Hypervisor  # noqa: E402
from report import LEGEND, figures, machine_facts, summary, table  # noqa: E402
from rows import GIB, Rounds, Row, median_wall, pair, rows_of_disk, rows_of_sizes  # noqa: E402
from timed import BenchmarkError, measure, warm  # noqa: E402

_QUICK_SIZE = GIB // 2


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size-gib", type=float, default=4, help="data on the disk (4)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of everything (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--quick", action="store_true", help="half a GiB, one round")
    parser.add_argument("--profile", action="store_true", help="only show where the engine spends its time")
    options = parser.parse_args()
    options.size = _QUICK_SIZE if options.quick else int(options.size_gib * GIB) // MIB * MIB
    options.rounds = 1 if options.quick else options.rounds
    return options


def say(text: str) -> None:
    """Tell the user how far things are."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def ansible_share(rows: list[Row]) -> dict[str, float] | None:
    """How much of an incremental backup from a playbook Ansible itself takes, where it is there."""
    ansible = os.environ.get("KVM_CBT_ANSIBLE") or shutil.which("ansible")
    if ansible is None:
        return None
    words = [
        "localhost",
        "-i",
        "localhost,",
        "-c",
        "local",
        "-e",
        "ansible_python_interpreter=/usr/bin/python3",
        "-m",
        "ansible.builtin.ping",
    ]
    start = median_wall([measure([ansible, *words])[0] for _round in range(3)])
    engine = next(row.seconds[0] for row in rows if row.number == 3)
    return {"seconds": start, "share_of_incremental": start / (start + engine)}


def profile(options: argparse.Namespace, hypervisor: Hypervisor) -> None:
    """Show where full backups, a restore and a verification spend their time."""
    image, _content = build(hypervisor.folder(), "profiled", options.size)
    with BlockDomain(hypervisor, [DiskSpec("vda", source=image)]) as domain:
        engine = Engine(domain)
        for compression in ("none", "lz4"):
            engine.full(compression)  # so that everything is warm
            engine.forget_backups()
            _sample(engine, "backup", "--compression", compression)
        warm(engine.backup_folder)
        engine.restore_folder.mkdir()
        _sample(engine, "restore", "--dest", str(engine.restore_folder))
        _sample(engine, "verify")


def _sample(engine: Engine, verb: str, *options: str) -> None:
    _measurement, printed = measure(engine.command(verb, *options, "--profile"), engine.folder)
    print(f"\n{verb} {' '.join(options[:2])}\n{printed}", flush=True)


def compare(options: argparse.Namespace, hypervisor: Hypervisor) -> dict[str, Any]:
    """Measure everything, print the table; all figures."""
    say(f"building a disk of {options.size / GIB:g} GiB of data")
    folder = hypervisor.folder()
    image, content = build(folder, "ours", options.size)
    copy = folder / "peer.qcow2"
    rounds = Rounds(options.rounds, say)
    rows: list[Row] = []
    shutil.copyfile(image, copy)
    with pair(hypervisor, images=(image, copy)) as (engine, peer):
        rows += rows_of_disk(rounds, engine, peer, options.size, content["virtual_bytes"])
    rows += rows_of_sizes(rounds, hypervisor)
    rows.sort(key=lambda row: row.number)
    print(f"{table(rows)}\n{LEGEND}\n{summary(rows)}")
    ansible = ansible_share(rows)
    if ansible is not None:
        print(f"ansible alone: {ansible['seconds']:.2f} s, {ansible['share_of_incremental']:.0%} of row 3")
    return {
        "machine": machine_facts(hypervisor.connection, folder),
        "disk": content,
        "rounds": options.rounds,
        "rows": figures(rows),
        "ansible": ansible,
    }


def main() -> None:
    """Run the benchmark; ends with 1 if something could not be measured."""
    options = arguments()
    if os.geteuid() != 0:
        sys.exit("bench: run it as root")
    try:
        with Hypervisor() as hypervisor:
            if options.profile:
                return profile(options, hypervisor)
            result = compare(options, hypervisor)
    except (BenchmarkError, LabError, OSError, libvirt.libvirtError) as error:
        sys.exit(f"bench: {error}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
