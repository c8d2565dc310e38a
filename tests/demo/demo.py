# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on a real guest: full backup, guest writes, incremental, verify, restore, proof."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT / "tests"))

from lab.disks import DiskSpec  # noqa: E402
from lab.guest import LinuxGuest  # noqa: E402
from lab.hypervisor import Hypervisor  # noqa: E402
from lab.reference import same_bytes, snapshot_reference  # noqa: E402

MIB = 1 << 20
DISK = DiskSpec("vda", 512 * MIB)


def say(text: str) -> None:
    """Tell a person what happens."""
    print(text, flush=True)


def amount(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / MIB:.1f} MiB"


class Ansible:
    """Runs modules of this collection by Ansible itself, on this host."""

    def __init__(self, folder: Path) -> None:
        self._results = folder / "results"
        collections = folder / "collections"
        link = collections / "ansible_collections" / "kvm" / "cbt"
        link.parent.mkdir(parents=True)
        link.symlink_to(_ROOT)
        own = {"ANSIBLE_COLLECTIONS_PATH": str(collections), "XDG_STATE_HOME": str(folder / "state")}
        self._environment = {**os.environ, **own, "ANSIBLE_LOCALHOST_WARNING": "false", "LC_ALL": "C.UTF-8"}

    def run(self, module: str, **arguments: t.Any) -> dict[str, t.Any]:
        """Run a module and return its result; a failure ends the demo with the module's message."""
        command = [
            str(Path(sys.executable).parent / "ansible"),
            "localhost",
            "-i",
            "localhost,",
            "-c",
            "local",
            "--tree",
            str(self._results),
        ]
        command += [
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            "-m",
            f"kvm.cbt.{module}",
            "-a",
            json.dumps(arguments),
        ]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=self._environment, stdin=subprocess.DEVNULL
        )
        written = self._results / "localhost"
        result = json.loads(written.read_text()) if written.exists() else {}
        if done.returncode != 0:
            raise SystemExit(f"{module} failed: {result.get('msg') or done.stdout + done.stderr}")
        return t.cast("dict[str, t.Any]", result)


def tell_backup(result: t.Mapping[str, t.Any]) -> None:
    """What a backup did."""
    for disk in result["disks"]:
        rate = disk["read_bytes"] / max(result["duration"], 0.001)
        say(f"   {disk['target']}: {disk['mode']}. {disk['reason']}")
        say(
            f"   looked at {amount(disk['dirty_bytes'])} of {amount(disk['virtual_size'])}, read {amount(disk['read_bytes'])},"
            f" new {amount(disk['new_bytes'])}, stored {amount(disk['stored_bytes'])}"
        )
        say(f"   {result['duration']:.2f} s, {amount(rate)}/s, consistency: {result['restore_point']['consistency']}")


def prove(
    ansible: Ansible, guest: LinuxGuest, repository: str, hypervisor: Hypervisor, sums: t.Mapping[str, str]
) -> None:
    """Restore the latest point and hold it against the disk itself and against the guest's own checksums."""
    reference = snapshot_reference(guest, hypervisor.folder())["vda"]
    target = hypervisor.folder()
    say("5. Restore the latest restore point to a new image")
    restored = ansible.run("cbt_restore", domain=guest.name, repository=repository, dest=str(target))
    disk = restored["disks"][0]
    rate = disk["written_bytes"] / max(restored["duration"], 0.001)
    say(f"   wrote {amount(disk['written_bytes'])} in {restored['duration']:.2f} s, {amount(rate)}/s")
    image = Path(disk["path"])
    say("6. Proof")
    unlike = same_bytes(image, reference, "qcow2", "raw")
    if unlike is not None:
        raise SystemExit(f"The restored disk differs from the original: {unlike}")
    say("   qemu-img compare with a copy of the running domain's disk made by nbdcopy: equal")
    image.chmod(0o666)
    with LinuxGuest(hypervisor, [DiskSpec("vda", DISK.size, source=image)]) as copy:
        copy.wait_ready()
        for path, expected in sums.items():
            found = copy.sha256(path)
            if found != expected:
                raise SystemExit(f"{path} in the restored guest has SHA-256 {found} instead of {expected}")
    say(f"   a guest boots from the restored disk and finds {len(sums)} files with their SHA-256")


def play(hypervisor: Hypervisor, ansible: Ansible) -> None:
    """The whole demonstration."""
    repository = str(hypervisor.folder() / "repository")
    started = time.monotonic()
    say("1. Boot a Linux guest under emulation")
    with LinuxGuest(hypervisor, [DISK]) as guest:
        guest.wait_ready()
        say(
            f"   {guest.name} is up after {time.monotonic() - started:.1f} s, with ext4 on {DISK.target} and the guest agent"
        )
        sums = {"/data/first": guest.write_random_file("/data/first", 64 * MIB)}
        say("2. Create a repository; full backup, the guest's file systems frozen for the instant of its begin")
        ansible.run("cbt_repository", repository=repository)
        tell_backup(ansible.run("cbt_backup", domain=guest.name, repository=repository, quiesce="required"))
        say("3. The guest writes 16 MiB and deletes nothing; incremental backup")
        sums["/data/second"] = guest.write_random_file("/data/second", 16 * MIB)
        guest.sync()
        guest.handle.suspend()  # so that the disk can be copied for comparison in the state that is backed up
        tell_backup(ansible.run("cbt_backup", domain=guest.name, repository=repository, mode="incremental"))
        say("4. Verify every byte of both restore points")
        verified = ansible.run("cbt_verify", repository=repository, restore_points=["all"])
        for point in verified["restore_points"]:
            say(f"   {point['id']}: {point['status']}, {amount(point['checked_bytes'])} proven")
        prove(ansible, guest, repository, hypervisor, sums)


def main() -> None:
    """Run the demonstration and clean up."""
    with Hypervisor() as hypervisor, tempfile.TemporaryDirectory(prefix="kvm-cbt-demo-") as folder:
        play(hypervisor, Ansible(Path(folder)))
    say("Done. Everything made for this was removed.")


if __name__ == "__main__":
    main()
