# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts external programs. No other file starts any."""

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
# Checks the parent after the signal is set: a parent that died before sends no signal.
_UNLESS_ORPHANED = 'test "$PPID" = "$0" && exec "$@"'


# The environment that programs need. The rest is not passed on, such as keys of object stores.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")


def _environment() -> dict[str, str]:
    # Messages are matched and JSON numbers parsed: neither may depend on the caller's language.
    return {**{name: os.environ[name] for name in _PASSED_ON if name in os.environ}, "LC_ALL": "C"}


def _missing(program: str) -> ProgramError:
    package = "util-linux" if program == "setpriv" else "QEMU's tools (qemu-utils on Debian, qemu-img on RHEL)"
    return ProgramError(f"Cannot run {program}: it is not installed. Install {package}.")


def run(arguments: t.Sequence[str]) -> str:
    """Run a program to its end and return its output.

    Raises ProgramError with the program's message if the exit status is not 0.
    """
    try:
        # In a session of its own, the program does not get a Ctrl-C that is meant for this process.
        result = subprocess.run(
            arguments,
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


def output(arguments: t.Sequence[str], timeout: float) -> bytes:
    """Run a program that prints a secret, in this process's own environment, and return its output.

    Raises ProgramError, without the output, if it fails or takes longer than ``timeout`` seconds.
    """
    name = os.path.basename(arguments[0])
    try:
        result = subprocess.run(
            arguments,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise ProgramError(f"{name} did not end within {timeout:.0f} s") from None
    except OSError as error:
        raise ProgramError(f"{name} cannot be run: {error.strerror}") from None
    if result.returncode != 0:
        said = result.stderr.decode(errors="replace").strip() or f"exit status {result.returncode}"
        printed = result.stdout.decode(errors="replace").strip()
        raise ProgramError(f"{name} failed: {said.replace(printed, '********') if printed else said}")
    return result.stdout


def run_json(arguments: t.Sequence[str]) -> t.Any:
    """Run a program that prints JSON, and return the parsed document."""
    return json.loads(run(arguments))


class Service:
    """A child process that serves until it is stopped."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name

    def failed(self) -> str | None:
        """Return an error message if the program ended by itself, else None."""
        if self._process.poll() is None:
            return None
        said = self._process.stderr.read().strip() if self._process.stderr else ""
        return f"{self._name} ended early: {said or self._process.returncode}"

    def complete(self, watch: t.Callable[[], None]) -> tuple[int, str]:
        """Wait until the program ends by itself. Returns its exit status and its error output.

        ``watch`` is called every 0.2 s. If it raises, the program ends with the block.
        """
        while True:
            try:
                _out, said = self._process.communicate(timeout=_WATCH_EVERY)
                return self._process.returncode, said.strip()
            except subprocess.TimeoutExpired:
                watch()

    def stop(self, timeout: float) -> None:
        """Ask the program to end, and wait: it may have caches to write.

        Raises ProgramError if it does not end within ``timeout`` seconds or if it fails.
        """
        self._process.terminate()
        try:
            _out, said = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise ProgramError(f"{self._name} did not end within {timeout:.0f} s") from error
        if self._process.returncode not in (0, -signal.SIGTERM):
            raise ProgramError(f"{self._name} failed: {said.strip()}")

    def kill(self) -> None:
        """Kill the program."""
        self._process.kill()
        self._process.communicate()


def _ending_with_parent(arguments: t.Sequence[str]) -> list[str]:
    """Return the command for a program that ends with the thread that starts it.

    The kernel sends it SIGTERM then.
    """
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
        encoding="utf-8",
        errors="replace",
        env=_environment(),
        start_new_session=True,
    )
    running = Service(process, os.path.basename(arguments[0]))
    try:
        yield running
    finally:
        running.kill()


def detached(arguments: t.Sequence[str], errors: t.IO[bytes]) -> t.Callable[[], int | None]:
    """Start a program that goes on when this process ends. Its output goes to the file ``errors``.

    Returns a function that returns its exit status, None while it runs.
    """
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise _missing(arguments[0]) from error
    return process.poll
