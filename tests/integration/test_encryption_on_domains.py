# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted repositories of real domains: every point true, and no secret anywhere, whatever module is used."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from module_process import ModuleProcess, collection_path
from trial import Trial

from _cbt.errors import PassphraseRefused
from _cbt.operations.verify import verify
from _cbt.repository.places import Place
from _cbt.repository.repository import Repository, open_or_create, open_repository

MIB = 1 << 20
MARK = b"what nobody may read in the repository. "

# Has a module's process write down what it logs, as Ansible calls it.
_LOGGED = """
import sys, syslog
sys.modules["systemd"] = None
syslog.syslog = lambda *words: print(words, file=open({path!r}, "a"))
"""


@pytest.fixture
def passphrase() -> str:
    return secrets.token_hex(16)


@pytest.mark.parametrize("compression", ["lz4", "zstd", "zlib", "none"])
def test_every_point_in_an_encrypted_repository_is_true_running_and_shut_off(
    hypervisor: Hypervisor, workspace: Path, passphrase: str, compression: str
) -> None:
    trial = Trial(hypervisor, workspace, "plain")
    made = open_or_create(Place(str(workspace / "repository"), passphrase=passphrase))
    assert made is not None
    trial.repository = made
    trial.fill()
    trial.domain.write_bytes("vda", 3 * MIB, MARK * 1000)
    modes = []
    for step in ("running", "running", "off", "off", "running"):
        if step == "off" and trial.domain.running:
            trial.domain.destroy()
        elif step == "running" and not trial.domain.running:
            trial.domain.start()
        taken = trial.backup(compression=compression)
        modes.append({disk.mode for disk in taken.result.disks})
        if trial.domain.running:
            trial.write()
    assert modes == [{"full"}, *[{"incremental"}] * 4]
    trial.repository = open_repository(Place(str(workspace / "repository"), passphrase=passphrase))
    assert trial.untrue() == []
    assert [verdict.status for verdict in verify(trial.repository, wanted="all")[0]] == ["ok"] * 5
    _nothing_to_be_read(trial.repository, [passphrase.encode(), MARK, trial.domain.name.encode(), b"<domain"])
    trial.domain.close()


def _nothing_to_be_read(repository: Repository, secret: t.Sequence[bytes]) -> None:
    root = Path(repository.store.location)
    objects = [path for path in root.rglob("*") if path.is_file()]
    assert len(objects) > 5
    found = [(path.relative_to(root), each) for path in objects for each in secret if each in path.read_bytes()]
    assert found == []


class _Watch:
    """Looks for secrets in the command line and the environment of every process of the machine, over and over."""

    def __init__(self, secret: t.Sequence[bytes]) -> None:
        self._secret = secret
        self._done = threading.Event()
        self.found: t.Set[str] = set()
        self.programs: t.Set[str] = set()

    def __enter__(self) -> _Watch:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # ended meanwhile
                    words = (folder / "cmdline").read_bytes()
                    self.programs.add(Path(words.split(b"\0")[0].decode()).name)
                    text = words + (folder / "environ").read_bytes()
                    self.found.update(words.decode() for each in self._secret if each in text)


def test_no_secret_is_in_arguments_logs_results_and_processes_of_any_module(hypervisor: Hypervisor, workspace: Path, passphrase: str) -> None:
    log = workspace / "log"
    (collection_path(workspace) / "sitecustomize.py").write_text(_LOGGED.format(path=str(log)))
    wrong, new, told = secrets.token_hex(16), secrets.token_hex(16), []
    place = {"repository": str(workspace / "repository")}

    def run(module: str, failed: bool = False, check: bool = False, **arguments: t.Any) -> t.Dict[str, t.Any]:
        process = ModuleProcess(workspace, module, {**place, "passphrase": passphrase, **arguments}, check)
        out, err = process.process.communicate(timeout=300)
        told.extend([out, err])
        result: t.Dict[str, t.Any] = json.loads(out)
        assert bool(result.get("failed")) == failed, result
        assert "exception" not in result
        return result

    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB)]) as domain:
        domain.write_bytes("vda", 0, MARK * 5000)
        named = {"domain": domain.name}
        (workspace / "restored").mkdir()
        with _Watch([each.encode() for each in (passphrase, wrong, new)]) as watch:
            run("cbt_repository")
            run("cbt_backup", check=True, **named)
            first = run("cbt_backup", **named)["restore_point"]["id"]
            domain.write_bytes("vda", 4 * MIB, MARK * 5000)
            second = run("cbt_backup", **named)["restore_point"]["id"]
            changed = run("cbt_backup_info", changed_blocks={"from": first, "to": second, "disk": "vda"})["changed_blocks"]
            assert changed == [{"offset": 4 * MIB, "length": 262144, "zero": False}]
            assert run("cbt_backup_info", changed_blocks={"from": second, "disk": "vda"})["changed_blocks"] == []
            run("cbt_checkpoint", **named)
            run("cbt_checkpoint_info", **named)
            run("cbt_checkpoint", state="reconciled", **named)
            domain.destroy()
            run("cbt_backup", **named)
            run("cbt_verify", restore_points=["all"])
            run("cbt_restore", dest=str(workspace / "restored"), **named)
            for module in ("cbt_backup", "cbt_backup_info", "cbt_checkpoint", "cbt_checkpoint_info", "cbt_verify"):
                assert "opens no key slot" in run(module, failed=True, passphrase=wrong, **named)["msg"]
            assert "opens no key slot" in run("cbt_restore", failed=True, passphrase=wrong, dest=str(workspace), **named)["msg"]
            run("cbt_repository", new_passphrase=new)
            run("cbt_repository", failed=True, new_passphrase=wrong)
        repository = open_repository(Place(place["repository"], passphrase=new))
    master: bytes = repository.keys._master  # type: ignore[attr-defined]
    secret = [each.encode() for each in (passphrase, wrong, new, master.hex())] + [master]
    assert watch.found == set()
    assert "qemu-storage-daemon" in watch.programs, "the watch has seen what the modules start"
    logged = log.read_bytes()
    assert logged.count(b"Invoked with") == len(told) // 2, "every module has logged"
    assert logged.count(b"NOT_LOGGING_PARAMETER") >= len(told) // 2
    assert [each for each in secret if each in logged] == []
    assert [(text, each) for text in told for each in secret if each in text] == []
    _nothing_to_be_read(repository, [*secret, MARK, domain.name.encode(), b"<domain"])


def test_a_backup_under_way_is_not_disturbed_by_a_new_passphrase(hypervisor: Hypervisor, workspace: Path, passphrase: str) -> None:
    trial = Trial(hypervisor, workspace, "plain")
    made = open_or_create(Place(str(workspace / "repository"), passphrase=passphrase))
    assert made is not None
    trial.repository = made
    trial.fill()
    changing = ModuleProcess(workspace, "cbt_repository", {"repository": made.store.location, "passphrase": passphrase, "new_passphrase": "new"})
    trial.backup()
    assert changing.result()["changed"]
    trial.write()
    trial.backup()  # by who opened it before
    trial.repository = open_repository(Place(made.store.location, passphrase="new"))
    trial.write()
    assert {disk.mode for disk in trial.backup().result.disks} == {"incremental"}
    assert trial.untrue() == []
    with pytest.raises(PassphraseRefused):
        open_repository(Place(made.store.location, passphrase=passphrase))
    trial.domain.close()
