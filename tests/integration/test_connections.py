# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other ways to a domain: transient ones, session libvirts of users, passwords, UUIDs, and libvirts that do not answer."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import time
import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.base import UNDEFINE_ALL
from lab.cluster import Cluster
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.nodes import Node, NodeHypervisor
from lab.process import end_process, wait_until
from lab.reference import same_bytes, snapshot_reference
from module_process import ModuleProcess, created, run_module
from node_backup import back_up_in
from witness import Witnessed, differences, disk_result, witnessed_backup

from _cbt.errors import HypervisorError
from _cbt.hypervisor import connection
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.repository import Repository, open_repository

MIB = 1 << 20
GRANULE = 1 << 16
PASSWORD = "p4ss-w0rd-of-the-lab"
WRONG = "wr0ng-w0rd-of-the-lab"


class TransientDomain(BlockDomain):
    """A domain that libvirt forgets when it ends."""

    _definition: str | None = None

    def start(self) -> None:
        """Create the domain, which is not defined."""
        if self._definition is None:
            self._definition = self.xml(inactive=True)
            self.handle.undefineFlags(UNDEFINE_ALL)
        self._forget_qemu()
        self.hypervisor.connection.createXML(self._definition)

    def close(self) -> None:
        """Remove it as any other domain."""
        if self._definition is not None:
            self.hypervisor.connection.defineXML(self._definition)
            self._definition = None
        super().close()


def _exists(domain: BlockDomain) -> bool:
    return domain.name in [each.name() for each in domain.hypervisor.connection.listAllDomains()]


def test_a_transient_domain_keeps_its_history_when_it_is_created_again(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    taken: list[Witnessed] = []
    with TransientDomain(hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
        assert not domain.handle.isPersistent()

        def take(mode: str, dirty: int | None = None) -> str:
            folder = workspace / f"step-{len(taken)}"
            folder.mkdir()
            taken.append(witnessed_backup(domain, repository, folder))
            disk = disk_result(taken[-1].result, "vda")
            assert disk.mode == mode
            assert dirty is None or disk.statistics.dirty_bytes == dirty * GRANULE
            assert domain.checkpoints() == [bitmap["name"] for bitmap in domain.bitmaps("vda")]
            assert len(domain.checkpoints()) == 1
            return domain.checkpoints()[0]

        domain.write_random("vda", 0, 4 * MIB, 1)
        take("full")
        domain.write("vda", MIB, GRANULE, 0x11)
        checkpoint = take("incremental", 1)
        domain.write("vda", 2 * MIB, GRANULE, 0x12)
        domain.destroy()
        with pytest.raises(libvirt.libvirtError, match="not found"):
            domain.handle.state()
        gone = run_module(workspace, "cbt_backup", domain=domain.name, repository=repository.store.location)
        assert gone["failed"] and f"There is no domain {domain.name} on this host" in gone["msg"]
        domain.start()
        assert domain.checkpoints() == [] and [bitmap["name"] for bitmap in domain.bitmaps("vda")] == [checkpoint]
        domain.write("vda", 3 * MIB, GRANULE, 0x13)
        take("incremental", 2)
        end_process(domain.qemu_pid, signal.SIGKILL)
        wait_until(lambda: not _exists(domain), 30, "end of the domain")
        domain.start()
        take("full")
        take("incremental", 0)
    out = workspace / "restored"
    out.mkdir()
    assert [found for each in taken for found in differences(domain.name, repository, each, out)] == []


def test_a_domain_may_be_named_by_its_uuid_and_reached_as_roots_session(
    hypervisor: Hypervisor, workspace: Path
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB)]) as domain:
        where = {"repository": created(workspace, workspace / "repository")}
        domain.write("vda", 0, MIB, 0x11)
        assert run_module(workspace, "cbt_backup", domain=domain.name, **where)["disks"][0]["mode"] == "full"
        for name in (domain.uuid, domain.uuid.upper(), domain.uuid.replace("-", "")):
            result = run_module(workspace, "cbt_backup", domain=name, **where)
            assert result["disks"][0]["mode"] == "incremental", result
            assert (result["restore_point"]["domain"], result["restore_point"]["uuid"]) == (domain.name, domain.uuid)
        out = workspace / "restored"
        out.mkdir()
        # To root libvirt serves the same domains under both names.
        domain.write("vda", MIB, GRANULE, 0x12)
        session = run_module(workspace, "cbt_backup", domain=domain.uuid, uri="qemu:///session", **where)
        assert session["disks"][0]["dirty_bytes"] == GRANULE, session
        copy = snapshot_reference(domain, workspace)["vda"]
        restored = run_module(workspace, "cbt_restore", domain=domain.uuid, dest=str(out), format="raw", **where)
        assert same_bytes(Path(restored["disks"][0]["path"]), copy) is None
        unknown = run_module(workspace, "cbt_backup", domain="00000000-0000-4000-8000-000000000000", **where)
        assert unknown["failed"] and "There is no domain 00000000" in unknown["msg"] and domain.name in unknown["msg"]


def test_a_lock_that_cannot_be_taken_is_named(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB)]) as domain:
        lock = Path(f"/run/kvm-cbt/{domain.uuid}.lock")
        lock.parent.mkdir(mode=0o700, exist_ok=True)
        lock.symlink_to(workspace / "elsewhere")
        try:
            result = run_module(
                workspace, "cbt_backup", domain=domain.name, repository=created(workspace, workspace / "repository")
            )
        finally:
            lock.unlink()
        assert result["failed"] and f"Cannot lock {domain.name} against other runs: {lock}: " in result["msg"]
        assert not (workspace / "elsewhere").exists() and domain.checkpoints() == []


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+unix:///system?socket=/nonexistent/socket",
        "qemu+tcp://127.0.0.1:1/system",
        "nonsense:///system",
        "not a uri",
        "test:///nonexistent",
    ],
)
def test_a_libvirt_that_cannot_be_reached_is_named(uri: str, workspace: Path) -> None:
    result = run_module(workspace, "cbt_backup", domain="any", repository=str(workspace / "repository"), uri=uri)
    assert result["failed"]
    assert f"Cannot connect to libvirt at {uri.split('?')[0]}: " in result["msg"]
    assert not (workspace / "repository").exists()


def test_a_libvirt_that_accepts_but_never_answers_times_out(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_WITHIN", 1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(workspace / "silent"))
        silent.listen()
        started = time.monotonic()
        uri = f"qemu+unix:///system?socket={workspace / 'silent'}"
        with (
            pytest.raises(
                HypervisorError, match="Cannot connect to libvirt at qemu.unix:///system: it did not answer within 1 s"
            ),
            connection.connect(uri),
        ):
            raise AssertionError("connected to nobody")
        assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def node() -> t.Iterator[Node]:
    with Cluster(1) as cluster:
        yield cluster.nodes[0]


class SessionHypervisor(NodeHypervisor):
    """The session libvirt of a user of a node, which starts it when it is first asked."""

    def __init__(self, node: Node, user: str) -> None:
        account = pwd.getpwnam(user)
        self.ids = account.pw_uid, account.pw_gid
        self.prefix = ["setpriv", f"--reuid={self.ids[0]}", f"--regid={self.ids[1]}", "--clear-groups"]
        self.home = Path("/tmp") / user
        self.environment = {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home / "run")}
        for folder in (node.path(self.home), node.path(self.home / "run")):
            folder.mkdir()
            os.chown(folder, *self.ids)
        self._node = node
        started = node.run([*self.prefix, "libvirtd", "--daemon"], self.environment)
        assert started.returncode == 0, started.stderr
        # pylint: disable-next=non-parent-init-called
        Hypervisor.__init__(
            self, f"qemu+unix:///session?socket={node.path(self.home / 'run/libvirt/libvirt-sock')}", node.storage
        )

    def folder(self, name: str | None = None) -> Path:
        """A folder of the user."""
        path = super().folder(name)
        os.chown(path, *self.ids)
        return path


class SessionDomain(BlockDomain):
    """A domain of a user's session."""

    hypervisor: SessionHypervisor

    def _make_image(self, spec: DiskSpec, path: Path) -> None:
        super()._make_image(spec, path)
        os.chown(path, *self.hypervisor.ids)

    @property
    def qemu_log(self) -> Path:
        """Where QEMU's own output goes."""
        return self.hypervisor.path(self.hypervisor.home / ".cache/libvirt/qemu/log" / f"{self.name}.log")


def test_the_session_of_an_unprivileged_user(node: Node) -> None:
    with (
        SessionHypervisor(node, "nobody") as session,
        SessionDomain(session, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 4 * MIB, format="raw")]) as domain,
    ):
        place, scratch = session.folder(), session.folder()
        where = str(place / "repository")
        copies: dict[str, t.Mapping[str, Path]] = {}

        def take(mode: str, dirty: int | None = None, **options: t.Any) -> None:
            wanted = {
                "connection": {"uri": "qemu:///session"},
                "domain": domain.name,
                "scratch_dir": str(scratch),
                **options,
            }
            told = back_up_in(node, where, session.prefix, session.environment, **wanted)
            assert "failed" not in told, told
            assert [disk["mode"] for disk in told["disks"].values()] == [mode, "scan"], told
            assert dirty is None or told["disks"]["vda"]["dirty_bytes"] == dirty * GRANULE
            assert domain.checkpoints() == [told["checkpoint"]]
            assert list(scratch.iterdir()) == []
            if domain.running:
                copies[told["id"]] = snapshot_reference(domain, session.folder())

        domain.write_random("vda", 0, 4 * MIB, 1)
        domain.write("vdb", 0, MIB, 0x11)
        take("full")
        domain.write("vda", MIB, GRANULE, 0x12)
        take("incremental", 1)
        domain.write("vda", MIB, GRANULE, 0x13)
        domain.destroy()
        take("incremental", 1)
        take("incremental", 0, start_paused=True)
        domain.start()
        domain.write("vda", 2 * MIB, GRANULE, 0x14)
        take("incremental", 1)
        assert {
            (path.stat().st_uid, path.stat().st_gid)
            for path in [place / "repository", *(place / "repository").rglob("*")]
        } == {session.ids}
        repository = open_repository(where)
        for point, expected in copies.items():
            for disk in restore(
                repository, RestoreRequest(domain.name, restore_point=point, dest=str(session.folder()), format="raw")
            ).disks:
                assert same_bytes(Path(disk.path), expected[disk.target]) is None


class SaslLibvirt:
    """A node's libvirtd that wants a user and a password from now on."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.uri = node.uri
        node.path(Path("/etc/sasl2/libvirt.conf")).write_text(
            "mech_list: scram-sha-256\nsasldb_path: /etc/libvirt/passwd.db\n"
        )
        added = node.run(
            ["saslpasswd2", "-p", "-a", "libvirt", "-f", "/etc/libvirt/passwd.db", "backup"], stdin=PASSWORD
        )
        assert added.returncode == 0, added.stderr
        self._open_settings = node.path(Path("/etc/libvirt/libvirtd.conf")).read_text()
        self._restart(self._open_settings.replace('"none"', '"sasl"'))

    def _restart(self, settings: str) -> None:
        end_process(self._node.process(int(self._node.path(Path("/run/libvirtd.pid")).read_text())))
        self._node.path(Path("/etc/libvirt/libvirtd.conf")).write_text(settings)
        assert self._node.run(["libvirtd", "-d"]).returncode == 0
        wait_until(self._listens, 30, "start of libvirtd")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self._node.path(Path("/run/libvirt/libvirt-sock")))) == 0

    def close(self) -> None:
        """Let everybody in again."""
        self._restart(self._open_settings)


@pytest.fixture
def guarded(node: Node) -> t.Iterator[tuple[BlockDomain, SaslLibvirt]]:
    """A domain behind a password."""
    with BlockDomain(node.hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 1)
        sasl = SaslLibvirt(node)
        try:
            yield domain, sasl
        finally:
            sasl.close()


def _seen_by_others(words: t.Collection[str]) -> list[str]:
    """What of these words stands in the command lines and environments of processes."""
    seen = []
    for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        seen += [f"{path}: {word}" for word in words if word.encode() in text]
    return seen


def test_user_and_password_open_a_protected_libvirt_and_stay_secret(
    guarded: tuple[BlockDomain, SaslLibvirt], workspace: Path
) -> None:
    domain, sasl = guarded
    place = domain.hypervisor.folder()
    seen: list[str] = []

    def run(module: str = "cbt_backup", **options: t.Any) -> dict[str, t.Any]:
        arguments = {"domain": domain.name, "repository": str(place / "repository"), "uri": sasl.uri, **options}
        if module == "cbt_backup":
            arguments["scratch_dir"] = str(place)
        process = ModuleProcess(workspace, module, arguments)
        while process.process.poll() is None and len(seen) < 5:
            seen.extend(_seen_by_others([PASSWORD, WRONG]))
            time.sleep(0.02)
        result = process.result()
        assert PASSWORD not in json.dumps(result) and WRONG not in json.dumps(result)
        return result

    def authfile(name: str, password: str) -> str:
        path = workspace / f"auth file {name}"
        path.write_text(
            f"[credentials-one]\nauthname=backup\npassword={password}\n\n[auth-libvirt-default]\ncredentials=one\n"
        )
        path.chmod(0o600)
        return str(path)

    first = run(username="backup", password=PASSWORD, create_repository=True)
    assert not first.get("failed") and first["disks"][0]["mode"] == "full", first
    second = run(authfile=authfile("right", PASSWORD))
    assert not second.get("failed") and second["disks"][0]["mode"] == "incremental", second
    for options in (
        {"username": "backup", "password": WRONG},
        {"username": "somebody", "password": PASSWORD},
        {"username": "backup"},
        {"authfile": authfile("wrong", WRONG)},
        {},
    ):
        refused = run(**options)
        assert (
            refused["failed"]
            and "Cannot connect to libvirt at qemu+unix:///system: authentication failed" in refused["msg"]
        ), refused
        assert "Check username and password, or authfile" in refused["msg"]
    lost = run(authfile=str(workspace / "missing"))
    assert lost["failed"] and f"Cannot read the authentication file {workspace / 'missing'}." in lost["msg"]
    assert seen == []
