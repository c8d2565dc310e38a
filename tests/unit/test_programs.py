"""Child processes end with the process that started them, at whatever moment it dies, and get none of its secrets."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from _cbt import programs
from _cbt.errors import ProgramError

_ENGINE = Path(programs.__file__).parents[1]
_PARENT = """
import signal, sys
from _cbt import programs
with programs.service(sys.argv[1:]) as running:
    print(running._process.pid, flush=True)
    signal.pause()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that starts a program and waits. The program is ``serve`` in the folder ``bin``, where programs are looked for first."""
    (tmp_path / "bin").mkdir()
    tool(tmp_path, "serve", "exec sleep 600")
    environment = {
        **os.environ,
        "PYTHONPATH": str(_ENGINE),
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT, "serve"], stdout=subprocess.PIPE, text=True, env=environment
    )
    yield process
    process.kill()
    process.communicate()


def tool(folder: Path, name: str, script: str) -> None:
    """A program for ``parent`` to start."""
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def ends(pid: int) -> bool:
    """Wait for the end of a process that is nobody's child here."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 30)[0])
    finally:
        os.close(handle)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_program_ends_when_its_parent_is_killed(number: int, parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.send_signal(number)
    assert ends(child)


def test_a_program_whose_parent_died_before_the_kernel_knew_is_never_begun(
    tmp_path: Path, parent: subprocess.Popen[str]
) -> None:
    os.mkfifo(tmp_path / "go")
    # What comes before the kernel is asked takes as long as the test wants.
    tool(tmp_path, "setpriv", f'read -r word <"$HOME/go"; PATH={os.environ["PATH"]} exec setpriv "$@"')
    tool(tmp_path, "serve", 'echo begun >"$HOME/begun"; exec sleep 600')
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    (tmp_path / "go").write_text("go\n")  # waits for the reader
    assert ends(child)
    assert not (tmp_path / "begun").exists()


def test_a_program_started_beside_other_threads_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    over = threading.Event()
    others = [threading.Thread(target=over.wait) for _number in range(3)]
    states: list[str | None] = []

    def serve() -> None:
        with programs.service(["sleep", "600"]) as running:
            passing = threading.Thread(target=int)
            passing.start()
            passing.join()
            states.append(running.failed())
            states.append(str(running._process.pid))

    for thread in others:
        thread.start()
    worker = threading.Thread(target=serve)
    worker.start()
    worker.join()
    over.set()
    for thread in others:
        thread.join()
    assert states[0] is None
    assert not Path(f"/proc/{states[1]}").exists()


@pytest.mark.parametrize("gone", ["setpriv", "qemu-img"])
def test_a_program_that_is_not_installed_is_named_with_its_package(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name in {"setpriv", "qemu-img"} - {gone}:
        tool(tmp_path, name, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    package = {"setpriv": "util-linux", "qemu-img": "QEMU's tools"}[gone]
    with (
        pytest.raises(ProgramError, match=f"Cannot run {gone}: it is not installed. Install {package}"),
        programs.service(["qemu-img", "convert"]),
    ):
        raise AssertionError("it was started")


def test_programs_get_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "CBT_PASSPHRASE", "ANY_OTHER_TOKEN"):
        monkeypatch.setenv(name, "a-secret")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    seen = programs.run(["env"])
    with programs.service(["sh", "-c", f"env >{tmp_path}/seen; exec sleep 0"]) as running:
        assert running.complete(lambda: None) == (0, "")
    for each in (seen, (tmp_path / "seen").read_text()):
        assert "a-secret" not in each
        assert "LC_ALL=C\n" in each and f"PATH={os.environ['PATH']}\n" in each


def test_the_error_output_of_a_program_is_returned_even_if_it_is_not_utf_8() -> None:
    with programs.service(["sh", "-c", r"printf 'a\377b\n' >&2; exit 3"]) as running:
        assert running.complete(lambda: None) == (3, "a\ufffdb")
