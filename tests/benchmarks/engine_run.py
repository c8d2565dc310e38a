"""One run of the engine in a process of its own, so that its time and memory are all there is.

    engine_run.py backup|restore|verify REPOSITORY DOMAIN [--compression C] [--dedup D] [--mode M] [--dest FOLDER] [--encrypted] [--profile]

What was done is printed as JSON; `--profile` prints where the threads
spent their time before it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins" / "module_utils"))

from sampling import Sampler  # noqa: E402

from _cbt.errors import CbtError  # noqa: E402
from _cbt.hypervisor.connection import connect  # noqa: E402
from _cbt.operations.backup.backup import BackupRequest, backup  # noqa: E402
from _cbt.operations.backup.plan import BackupPolicy  # noqa: E402
from _cbt.operations.backup.run import BackupOptions  # noqa: E402
from _cbt.operations.restore.restore import RestoreRequest, restore  # noqa: E402
from _cbt.operations.verify.verify import VerifyRequest, verify  # noqa: E402
from _cbt.repository.creation import open_or_create
from _cbt.repository.location import RepositoryLocation  # noqa: E402
from _cbt.repository.repository import open_repository  # noqa: E402


def place(options: argparse.Namespace) -> RepositoryLocation:
    """Where the repository is."""
    return RepositoryLocation(options.repository, passphrase="of a benchmark" if options.encrypted else None)


def run_backup(options: argparse.Namespace) -> dict[str, Any]:
    """Back up the domain; the mode of each disk and what was counted."""
    repository = open_or_create(place(options))
    request = BackupRequest(
        options.domain, BackupPolicy(options.mode), BackupOptions(compression=options.compression, dedup=options.dedup)
    )
    with connect() as connection:
        result = backup(connection, repository, request)
    disks = {
        disk.target: {"mode": disk.mode, **(vars(disk.statistics) if disk.statistics else {})} for disk in result.disks
    }
    return {"duration": result.duration, "disks": disks, "warnings": result.warnings}


def run_restore(options: argparse.Namespace) -> dict[str, Any]:
    """Restore the latest point to qcow2; the image of each disk."""
    request = RestoreRequest(options.domain, dest=options.dest)
    with connect() as connection:
        result = restore(open_repository(place(options)), request, connection)
    return {
        "duration": result.duration,
        "images": {disk.target: disk.path for disk in result.disks},
    }


def run_verify(options: argparse.Namespace) -> dict[str, Any]:
    """Verify the data of the latest point."""
    verdicts, duration = verify(open_repository(place(options)), VerifyRequest(options.domain))
    damaged = [verdict.name for verdict in verdicts if verdict.damage]
    if damaged or not verdicts:
        raise CbtError(f"Restore points found damaged: {', '.join(damaged) or 'there are none'}.")
    return {"duration": duration, "checked_bytes": sum(each.checked_bytes for each in verdicts)}


VERBS = {"backup": run_backup, "restore": run_restore, "verify": run_verify}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=sorted(VERBS))
    parser.add_argument("repository", help="an absolute path")
    parser.add_argument("domain")
    parser.add_argument("--compression", default="lz4", choices=("none", "lz4", "zstd", "zlib"))
    parser.add_argument("--dedup", default="repository", choices=("repository", "domain", "none"))
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--dest", help="the folder to restore to")
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run one verb."""
    options = arguments()
    sampler = Sampler() if options.profile else contextlib.nullcontext()
    try:
        with sampler:
            done = VERBS[options.verb](options)
    except CbtError as error:
        sys.exit(f"engine_run: {error}")
    print(json.dumps(done))


if __name__ == "__main__":
    main()
