# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task whose controller is killed ends itself and leaves nothing, unless the user chose async."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import typing as t
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.process import alive, process_name, wait_until
from lab.sshd import Sshd
from module_process import ModuleProcess, created, run_module
from plays import environment
from witness import ask, session_of, unfinished

from _cbt.operations.backup.backup import backup
from _cbt.repository.format import names
from _cbt.repository.repository import Repository, open_repository

MIB = 1 << 20
SILENCE = 10  # instead of the collection's 30 seconds
LOCAL = "ansible_connection=local"
WATCHED = ("here", "there", "each")
HOSTS = (*WATCHED, "detached")


@pytest.fixture
def impatient(collections: Path, tmp_path: Path) -> Path:
    """A copy of the collection whose controller counts as lost sooner."""
    copy = tmp_path / "collections/ansible_collections/kvm/cbt"
    shutil.copytree(collections, copy, symlinks=True)
    path = copy / "plugins/module_utils/_heartbeat.py"
    text, count = re.subn(r"^SILENCE = 30\b", f"SILENCE = {SILENCE}", path.read_text(), flags=re.MULTILINE)
    text, more = re.subn(r"^INTERVAL = 5\b", "INTERVAL = 1", text, flags=re.MULTILINE)
    assert (count, more) == (1, 1)
    path.write_text(text)
    return copy


class Site:
    """A domain for each host of the play, with a first restore point and changes since."""

    def __init__(self, folder: Path, workspace: Path, hypervisor: Hypervisor, stack: ExitStack) -> None:
        self.folder, self.workspace = folder, workspace
        self.location = created(workspace, workspace / "repository")
        self.domains: dict[str, BlockDomain] = {}
        for number, host in enumerate(HOSTS):
            domain = stack.enter_context(BlockDomain(hypervisor, [DiskSpec("vda", 32 * MIB)]))
            self.domains[host] = domain
            assert self.back_up(host) == "full"
            domain.write_random("vda", 0, 16 * MIB, number)
            self.scratch(host).mkdir()
            self.scratch(host).chmod(0o711)

    @property
    def repository(self) -> Repository:
        return open_repository(self.location)

    def scratch(self, host: str) -> Path:
        return self.workspace / f"scratch-{host}"

    def log(self, host: str) -> Path:
        return self.folder / f"log-{host}"

    def options(self, host: str) -> dict[str, t.Any]:
        return {
            "domain": self.domains[host].name,
            "repository": self.location,
            "scratch_dir": str(self.scratch(host)),
            "log_path": str(self.log(host)),
            "rate_limit": "1M" if host == "detached" else "256K",
        }

    def back_up(self, host: str) -> str:
        """The mode in which a backup read the disk."""
        result = run_module(
            self.workspace, "cbt_backup", domain=self.domains[host].name, repository=self.location, workers=2
        )
        return str(result["disks"][0]["mode"])

    def traces(self, host: str) -> dict[str, t.Any]:
        """What a backup could leave behind."""
        domain = self.domains[host]
        return {
            "job": domain.job_running(),
            "checkpoints": domain.checkpoints(),
            "bitmaps": [bitmap["name"] for bitmap in domain.bitmaps("vda", marks=True)],
            "scratch": sorted(path.name for path in self.scratch(host).iterdir()),
            "points": [point.id for point in self.repository.points_of(domain.handle.UUIDString()).points],
        }

    def process(self, host: str) -> int:
        """Id of the module's process once it reads the disk; 0 before."""
        if not self.log(host).exists():
            return 0
        found = re.search(r" cbt_backup\[(\d+)\] reading begun ", self.log(host).read_text())
        return int(found[1]) if found else 0

    def last_event(self, host: str) -> str:
        return self.log(host).read_text().splitlines()[-1]


def play(site: Site) -> list[dict[str, t.Any]]:
    """Four hosts, each of which backs up its domain in another way."""
    here, there, each, detached = (site.options(host) for host in HOSTS)
    listed = {"label": each["domain"], "options": each}
    tasks: list[dict[str, t.Any]] = [
        {"kvm.cbt.cbt_backup": here, "when": "inventory_hostname == 'here'"},
        {"kvm.cbt.cbt_backup": there, "when": "inventory_hostname == 'there'"},
        {
            "kvm.cbt.cbt_each": {"module": "kvm.cbt.cbt_backup", "each": [listed]},
            "when": "inventory_hostname == 'each'",
        },
        {"kvm.cbt.cbt_backup": detached, "when": "inventory_hostname == 'detached'", "async": 600, "poll": 1},
    ]
    return [{"hosts": "all", "gather_facts": False, "strategy": "free", "tasks": tasks}]


def heartbeat_file(pid: int) -> Path:
    """The file that a module got when it was started."""
    given = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return Path(dict(each.split("=", 1) for each in given if each)["_KVM_CBT_HEARTBEAT"])


def controller_processes(main: int, control_path: Path) -> list[int]:
    """The ids of ansible-playbook, its workers, and the ssh clients and masters of its connections."""
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    found = [main, *map(int, children)]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                str(control_path).encode() in (folder / "cmdline").read_bytes()
                and process_name(int(folder.name)) == "ssh"
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_after_the_controller_is_killed_nothing_is_left_and_the_next_backup_is_incremental(
    impatient: Path, tmp_path: Path, hypervisor: Hypervisor, workspace: Path
) -> None:
    with ExitStack() as stack:
        site = Site(tmp_path, workspace, hypervisor, stack)
        before = {host: site.traces(host) for host in HOSTS}
        sshd = stack.enter_context(Sshd(tmp_path / "sshd"))
        control_path = tmp_path / "master"
        ssh = f"{sshd.client_options} -o ControlMaster=auto -o ControlPersist=60 -o ControlPath={control_path}"
        inventory = tmp_path / "inventory"
        inventory.write_text(
            f"here {LOCAL}\nthere ansible_ssh_args='{ssh}'\neach {LOCAL}\ndetached {LOCAL}\n"
            f"[all:vars]\nansible_python_interpreter=/usr/bin/python3\nansible_async_dir={tmp_path / 'async'}\n"
        )
        (tmp_path / "play.yml").write_text(json.dumps(play(site)))
        printed = tmp_path / "printed"
        with printed.open("w") as output:
            running = subprocess.Popen(
                [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, tmp_path / "play.yml"],
                cwd=tmp_path,
                env=environment(impatient, tmp_path),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        stack.callback(running.wait)
        stack.callback(running.kill)
        with contextlib.suppress(LabError):
            wait_until(lambda: running.poll() is not None or all(map(site.process, HOSTS)), 300, "four backups")
        assert all(map(site.process, HOSTS)) and running.poll() is None, printed.read_text()
        files = {host: heartbeat_file(site.process(host)) for host in WATCHED}
        assert len(set(files.values())) == len(files)
        begun = {host: path.stat().st_mtime_ns for host, path in files.items()}
        wait_until(lambda: all(files[host].stat().st_mtime_ns > begun[host] for host in files), 60, "heartbeats")
        with pytest.raises(KeyError):
            heartbeat_file(site.process("detached"))
        killed = controller_processes(running.pid, control_path)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        assert len(killed) >= 1 + len(HOSTS) + 2

        for host in WATCHED:
            wait_until(lambda host=host: not alive(site.process(host)), 60, f"end of the backup on {host}")  # type: ignore[misc]
            assert "Ended by the loss of the controller" in site.last_event(host)
            assert site.traces(host) == before[host]
            assert site.back_up(host) == "incremental"
        wait_until(lambda: not alive(site.process("detached")), 60, "end of the backup with async")
        assert " succeeded " in site.last_event("detached")
        assert len(site.traces("detached")["points"]) == 2
        assert site.back_up("detached") == "incremental"
        assert unfinished(site.repository) == []
        assert not any(path.exists() for path in files.values())


# The module waits at its first safe point until it is asked to stop, which happens a second after the last heartbeat.
_WAITING = """
import os, time
from ansible_collections.kvm.cbt.plugins.module_utils import _heartbeat
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.control import Control
_heartbeat.SILENCE = 1
check = Control.check
def patient(self):
    deadline = time.monotonic() + 60
    while self._reason is None and time.monotonic() < deadline:
        time.sleep(0.02)
    check(self)
Control.check = patient
os.environ[_heartbeat.VARIABLE] = {file!r}
"""


def test_other_long_tasks_undo_unfinished_work_without_heartbeats(
    original: BlockDomain, repository: Repository, workspace: Path, tmp_path: Path
) -> None:
    location, domain = repository.store.location, original.name
    backup(session_of(original), repository, ask(domain))
    out, images, dest = workspace / "out", workspace / "images", created(workspace, workspace / "copy")
    out.mkdir()
    images.mkdir()
    (images / "disk.raw").write_bytes(os.urandom(4 * MIB))
    points = [point.id for point in repository.points_of().points]
    assert len(points) == 2
    given: dict[str, dict[str, t.Any]] = {
        "cbt_copy": {"repository": location, "dest_repository": dest},
        "cbt_image": {"path": str(images / "disk.raw"), "source_format": "raw", "scratch_dir": str(images)},
        "cbt_restore": {"repository": location, "domain": domain, "dest": str(out), "define": False},
        "cbt_restore_point": {"repository": location, "restore_points": points, "state": "absent"},
        "cbt_retention": {"repository": location, "keep_last": 1},
        "cbt_verify": {"repository": location, "level": "data"},
    }
    running = {}
    for module, options in given.items():
        (tmp_path / module).touch()
        before = _WAITING.format(file=str(tmp_path / module))
        running[module] = ModuleProcess(workspace, module, options, before=before)
    for module, process in running.items():
        result = process.result()
        assert "Ended by the loss of the controller: no heartbeat" in result.get("msg", ""), (
            module,
            result,
        )
        assert not (tmp_path / module).exists()

    assert list(out.iterdir()) == []
    assert [path.name for path in images.iterdir()] == ["disk.raw"]
    assert [point.id for point in repository.points_of().points] == points
    assert open_repository(dest).points_of().points == ()
    for each in (repository, open_repository(dest)):
        assert unfinished(each) == [] and list(each.store.list(names.LEASES)) == []
    assert run_module(workspace, "cbt_restore", **given["cbt_restore"])["changed"]
