# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only place where external programs are started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import typing as t

from .errors import ProgramError

_WATCH_EVERY = 0.2  # seconds
# The program's own parent is asked for once the signal is set: a parent that died before that sends none.
_UNLESS_ORPHANED = 'test "$PPID" = "$0" && exec "$@"'


# What programs need of the environment. All else stays here, such as keys of object stores.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")


def _environment() -> dict[str, str]:
    # Messages are matched and JSON numbers read: neither may depend on the caller's language.
    return {**{name: os.environ[name] for name in _PASSED_ON if name in os.environ}, "LC_ALL": "C"}


def _missing(program: str) -> ProgramError:
    package = "util-linux" if program == "setpriv" else "QEMU's tools (qemu-utils on Debian, qemu-img on RHEL)"
    return ProgramError(f"Cannot run {program}: it is not installed. Install {package}.")


def run(arguments: t.Sequence[str]) -> str:
    """Run a program to its end and return what it printed.

    Raises ProgramError with the program's own words if it exits with anything but 0.
    """
    try:
        # A session of its own: a Ctrl-C meant for us must not tear the tool down half-way.
        result = subprocess.run(
            list(arguments),
            check=False,
            capture_output=True,
            text=True,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise _missing(arguments[0]) from error
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        raise ProgramError(f"{os.path.basename(arguments[0])} failed: {said}")
    return result.stdout


def run_json(arguments: t.Sequence[str]) -> t.Any:
    """Run a program that prints JSON and return the parsed document."""
    return json.loads(run(arguments))


class Service:
    """A running child process that serves until it is told to end."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process = process
        self._name = name

    def failed(self) -> str | None:
        """What the program said if it has ended by itself, else None."""
        if self._process.poll() is None:
            return None
        said = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        return f"{self._name} ended early: {said or self._process.returncode}"

    def complete(self, watch: t.Callable[[], None]) -> tuple[int, str]:
        """Wait until the program has ended by itself; its exit status and what it said.

        ``watch`` is called every now and then; what it raises ends the program, too, at the end of the block.
        """
        while True:
            try:
                _out, said = self._process.communicate(timeout=_WATCH_EVERY)
                return self._process.returncode, said.decode(errors="replace").strip()
            except subprocess.TimeoutExpired:
                watch()

    def stop(self, timeout: float = 600.0) -> None:
        """Ask the program to end in order and wait for it (it may have caches to write).

        Raises ProgramError if it does not end within ``timeout`` seconds or ends badly.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            _out, said = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise ProgramError(f"{self._name} did not end within {timeout:.0f} s") from error
        if self._process.returncode not in (0, -signal.SIGTERM):
            raise ProgramError(f"{self._name} failed: {said.decode(errors='replace').strip()}")

    def kill(self) -> None:
        """End the program at once."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def _ending_with_parent(arguments: t.Sequence[str]) -> list[str]:
    """The arguments that start a program which the kernel ends (SIGTERM) when the thread that started it ends."""
    return ["setpriv", "--pdeathsig", "TERM", "--", "sh", "-c", _UNLESS_ORPHANED, str(os.getpid()), *arguments]


@contextlib.contextmanager
def service(arguments: t.Sequence[str]) -> t.Iterator[Service]:
    """Start a program that serves. It ends with the block, and with this process, however that ends."""
    for program in (arguments[0], "setpriv"):
        if shutil.which(program) is None:
            raise _missing(program)
    process = subprocess.Popen(
        _ending_with_parent(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
    )
    running = Service(process, os.path.basename(arguments[0]))
    try:
        yield running
    finally:
        running.kill()
