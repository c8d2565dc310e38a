# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The label of a job's folder. No kernel here has SELinux: its program that sets labels is stood in for."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import typing as t
from pathlib import Path

import pytest

from _cbt import runtime

scratch = pytest.importorskip("_cbt.hypervisor.scratch")


class _Facts(t.NamedTuple):
    uuid: str = "0a1b2c3d-0000-0000-0000-000000000000"
    owner: None = None
    host: None = None


@pytest.fixture
def tmp_path() -> t.Iterator[Path]:
    """A folder with a short path: that of a socket has no room for the usual one."""
    with tempfile.TemporaryDirectory(prefix="scratch-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("active", [True, False])
def test_the_folder_gets_the_label_of_the_hosts_rules_where_selinux_is_active(
    active: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = tmp_path / "labelled"
    program = tmp_path / "restorecon"
    program.write_text(f'#!/bin/sh\necho "$@" >> {labelled}\n')
    program.chmod(0o755)
    switch = tmp_path / "enforce"
    if active:
        switch.write_text("1")
    monkeypatch.setattr(scratch, "SELINUX", str(switch))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with scratch.scratch_folder(_Facts(), str(tmp_path)) as folder:
        assert labelled.exists() == active
    assert not active or labelled.read_text() == f"{folder} {folder}/qemu\n"


def test_a_failure_to_set_a_label_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "restorecon"
    program.write_text("#!/bin/sh\necho no such rule >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(scratch, "SELINUX", str(program))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with (
        pytest.raises(Exception, match="restorecon failed: no such rule"),
        scratch.scratch_folder(_Facts(), str(tmp_path)),
    ):
        pass
    assert list(tmp_path.glob("kvm-cbt-*")) == []


@pytest.mark.parametrize(("length", "named"), [(20, True), (31, True), (32, False), (67, False)])
def test_a_folder_is_named_after_the_domains_profile_where_the_path_of_its_socket_allows_that(
    length: int, named: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="x") as short:
        parent = f"{short}/".ljust(length, "d")
        os.makedirs(parent)
        with scratch.scratch_folder(_Facts(), parent) as folder:
            name = os.path.basename(folder)
            assert name.startswith(f"kvm-cbt-libvirt-{_Facts().uuid}-" if named else "kvm-cbt-0a1b2c3d-")
            assert name.startswith(scratch.local_prefix(_Facts().uuid)), "a later run knows it as its own"
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(scratch.socket_of_qemu(folder))


def test_names_of_local_folders_are_never_those_of_remote_ones() -> None:
    uuid = _Facts().uuid
    assert not scratch.remote_prefix(uuid).startswith(scratch.local_prefix(uuid))
    assert not any(each.startswith(scratch.remote_prefix(uuid)) for each in scratch.local_prefix(uuid))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., str]:
    """The prefix of pools for runs of a host with this machine id, hostname and folder of locks, in a container or not."""

    def prefix(machine: str, name: str, locks: str, container: bool = False) -> str:
        (tmp_path / "machine-id").write_text(f"{machine}\n")
        (tmp_path / "marker").unlink(missing_ok=True)
        if container:
            (tmp_path / "marker").touch()
        monkeypatch.setattr(scratch, "_MACHINE_ID", str(tmp_path / "machine-id"))
        monkeypatch.setattr(scratch, "_OF_CONTAINERS", (str(tmp_path / "marker"),))
        monkeypatch.setattr(socket, "gethostname", lambda: name)
        monkeypatch.setattr(runtime, "ROOTS_FOLDER", str(tmp_path / locks))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / locks))
        return str(scratch.remote_prefix(_Facts().uuid))

    return prefix


def test_a_host_recognizes_its_pools_under_another_name_and_after_a_restart(host: t.Callable[..., str]) -> None:
    assert host("m1", "one", "run") == host("m1", "two", "other run")
    assert host("m1", "one", "run") != host("m2", "one", "run")


@pytest.mark.parametrize(("machine", "marked"), [("", False), ("m1", True)], ids=["no machine id", "id of the image"])
def test_containers_of_the_same_name_do_not_end_jobs_of_each_other(
    host: t.Callable[..., str], tmp_path: Path, machine: str, marked: bool
) -> None:
    first = host(machine, "same", "run1", marked)
    assert first == host(machine, "same", "run1", marked), "another run in the same container"
    assert first != host(machine, "same", "run2", marked)


def exchange_while_removed(monkeypatch: pytest.MonkeyPatch, path: Path, put: t.Callable[[Path], object]) -> None:
    """Have something else ``put`` in the place of an empty folder just when it has turned out to be a folder, as QEMU's user can."""
    real = os.unlink

    def exchange(name: str, **options: t.Any) -> None:
        try:
            real(name, **options)
        except IsADirectoryError:
            if name == path.name:
                path.rmdir()
                put(path)
            raise

    monkeypatch.setattr(os, "unlink", exchange)


def test_a_folder_replaced_by_a_link_during_its_removal_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    (outside / "below").mkdir(parents=True)
    (outside / "precious").write_bytes(b"precious")
    (folder / "qemu").mkdir(parents=True)
    exchange_while_removed(monkeypatch, folder / "qemu", lambda path: path.symlink_to(outside))
    scratch.remove_folder(str(folder))
    assert sorted(path.name for path in outside.iterdir()) == ["below", "precious"] and (folder / "qemu").is_symlink()
    monkeypatch.undo()
    scratch.remove_folder(str(folder))
    assert not folder.exists() and (outside / "precious").exists()


def test_a_folder_replaced_by_a_pipe_during_its_removal_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run/qemu").mkdir(parents=True)
    exchange_while_removed(monkeypatch, tmp_path / "run/qemu", os.mkfifo)
    scratch.remove_folder(str(tmp_path / "run"))
    assert stat.S_ISFIFO((tmp_path / "run/qemu").stat().st_mode)


def test_a_link_is_followed_once_and_not_each_time_it_is_used(tmp_path: Path) -> None:
    """It may lie where others can change it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with scratch.scratch_folder(_Facts(), str(tmp_path / "link")) as folder:
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path / "other")
        assert Path(folder).parent == tmp_path / "real" and Path(folder).is_dir()
    assert list((tmp_path / "real").iterdir()) == []


def test_a_path_that_is_not_a_run_folder_is_removed_without_following_it(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    for name in ("link", "none", "outside"):
        scratch.remove_folder(str(tmp_path / name))
    assert not any(os.path.lexists(tmp_path / name) for name in ("link", "outside"))


def test_another_users_folder_in_the_place_of_the_one_just_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give folders away")
    real = scratch.tempfile.mkdtemp

    def exchanged(**options: t.Any) -> str:
        path = real(**options)
        os.chown(path, 65534, 65534)
        return str(path)

    monkeypatch.setattr(scratch.tempfile, "mkdtemp", exchanged)
    with (
        pytest.raises(Exception, match="another user replaced the one that was just created"),
        scratch.scratch_folder(_Facts(), str(tmp_path)),
    ):
        pass
