"""Locks of a host are in a folder of their user's own: no other user can hold, replace or redirect them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from _cbt import runtime
from _cbt.control import Control
from _cbt.errors import Interrupted, Refused
from _cbt.hypervisor.backup_job import domain_lock
from ansible_collections.kvm.cbt.plugins.module_utils import _hypervisor

NOBODY = pwd.getpwnam("nobody")
_ENGINE = Path(runtime.__file__).parent
_HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
_LOCK = """
import sys
from _cbt import runtime
from _cbt.errors import CbtError
from _cbt.hypervisor.backup_job import domain_lock
try:
    with domain_lock(sys.argv[1], "web1"), runtime.own_folder() as (path, _handle):
        print(path)
except CbtError as error:
    print(error)
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users")


@pytest.fixture(scope="module")
def engine() -> Iterator[Path]:
    """A copy of the engine that every user can read, wherever the checkout is."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        shutil.copytree(_ENGINE, Path(made) / "_cbt", ignore=shutil.ignore_patterns("__pycache__"))
        Path(made).chmod(0o755)
        yield Path(made)


def as_nobody(engine: Path, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A script run by another user."""
    return subprocess.Popen(
        ["/usr/bin/python3", "-B", "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=NOBODY.pw_uid,
        group=NOBODY.pw_gid,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(engine), **environment},
    )


@pytest.fixture
def name() -> Iterator[str]:
    """The UUID of a domain that no other test locks."""
    made = str(uuid.uuid4())
    yield made
    for left in (f"/run/kvm-cbt/{made}.lock", f"/run/lock/kvm-cbt-{made}.lock"):
        Path(left).unlink(missing_ok=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root's folder of locks, elsewhere."""
    made = tmp_path / "kvm-cbt"
    monkeypatch.setattr(runtime, "ROOTS_FOLDER", str(made))
    return made


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder that another user owns, and can reach."""
    made = Path("/var/tmp") / f"kvm-cbt-test-{uuid.uuid4()}"
    made.mkdir(mode=0o700)
    os.chown(made, NOBODY.pw_uid, NOBODY.pw_gid)
    yield made
    subprocess.run(["rm", "-r", "--", str(made)], check=True)


def test_a_lock_held_by_another_user_in_a_shared_folder_blocks_no_run(name: str, engine: Path) -> None:
    holder = as_nobody(engine, _HOLD, f"/run/lock/kvm-cbt-{name}.lock")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with domain_lock(name, "web1"):
        assert oct(Path("/run/kvm-cbt").stat().st_mode & 0o7777) == "0o700"
    holder.communicate("")


def test_another_user_can_neither_make_nor_hold_a_lock_of_root(name: str, engine: Path) -> None:
    with domain_lock(name, "web1"):
        pass
    said, _error = as_nobody(engine, _HOLD, f"/run/kvm-cbt/{name}.lock").communicate("")
    assert "PermissionError" in said


def test_a_second_run_is_refused_and_the_next_one_is_not(name: str, folder: Path) -> None:
    with (
        domain_lock(name, "web1"),
        pytest.raises(Refused, match="Another run of kvm.cbt is working on web1"),
        domain_lock(name, "web1"),
    ):
        raise AssertionError("both hold it")
    with domain_lock(name, "web1"):
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}.lock"]


def test_a_run_that_may_wait_begins_when_the_other_one_ends(name: str, folder: Path) -> None:
    looks = 0
    with contextlib.ExitStack() as other:
        other.enter_context(domain_lock(name, "web1"))

        def wait() -> bool:
            nonlocal looks
            looks += 1
            if looks == 3:
                other.close()
            return True

        with domain_lock(name, "web1", wait):
            assert looks == 3


def test_a_module_waits_until_its_time_is_over_or_it_is_asked_to_end() -> None:
    control, until = Control(), time.monotonic() + 0.02
    looks = 0
    while _hypervisor.wait(control, until):
        looks += 1
    assert looks >= 1 and time.monotonic() >= until
    assert not _hypervisor.wait(control, time.monotonic() - 1), "it does not wait by default"
    control.request("SIGTERM")
    with pytest.raises(Interrupted, match="SIGTERM"):
        _hypervisor.wait(control, time.monotonic() + 3600)


@pytest.mark.parametrize("where", ["folder", "lock"])
def test_a_link_is_not_followed(where: str, name: str, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if where == "folder":
        elsewhere.mkdir()
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir()
        (folder / f"{name}.lock").symlink_to(elsewhere)
    with pytest.raises(Refused, match=str(folder)), domain_lock(name, "web1"):
        raise AssertionError("it was followed")
    assert not elsewhere.exists() or not list(elsewhere.iterdir())


def test_a_folder_of_another_user_is_refused(name: str, folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(Refused, match=f"it belongs to user {NOBODY.pw_uid}"), domain_lock(name, "web1"):
        raise AssertionError("it was used")


def test_a_folder_that_others_could_write_to_is_closed(name: str, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with domain_lock(name, "web1"):
        assert folder.stat().st_mode & 0o7777 == 0o700


def test_another_user_locks_in_the_runtime_directory(name: str, theirs: Path, engine: Path) -> None:
    said, _error = as_nobody(engine, _LOCK, name, XDG_RUNTIME_DIR=str(theirs)).communicate()
    assert said == f"{theirs}/kvm-cbt\n"
    status = (theirs / "kvm-cbt").stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (NOBODY.pw_uid, 0o700)


@pytest.mark.parametrize("runtime_directory", ["", "relative", "/nonexistent/runtime", "/run/user/0", "/tmp"])
def test_without_a_runtime_directory_of_its_own_another_user_locks_below_the_home(
    runtime_directory: str, name: str, theirs: Path, engine: Path
) -> None:
    if Path(f"/run/user/{NOBODY.pw_uid}").exists():
        pytest.skip("this user has a runtime directory")
    said, _error = as_nobody(engine, _LOCK, name, XDG_RUNTIME_DIR=runtime_directory, HOME=str(theirs)).communicate()
    assert said == f"{theirs}/.local/state/kvm-cbt\n"


def test_an_error_names_the_folder_that_cannot_be_created(name: str, engine: Path) -> None:
    said, _error = as_nobody(engine, _LOCK, name, HOME="/nonexistent").communicate()
    assert "Cannot use /nonexistent/.local/state/kvm-cbt for locks: Permission denied." in said
