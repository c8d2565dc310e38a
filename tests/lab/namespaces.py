# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Linux namespaces that live as long as one process, which ends with the test process at the latest."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError
from lab.process import end_process, wait_until


class Namespaces:
    """A process in namespaces of its own.

    Its standard input is a pipe from this process: the program has to end when the pipe does,
    so nothing is left even after SIGKILL. Nothing is mounted below /run/netns or the like;
    the kernel removes the namespaces with their last process.
    """

    def __init__(self, kinds: Sequence[str], program: Sequence[str | Path], log: Path) -> None:
        """Start `program` in new namespaces of these kinds, such as "net"; it writes to `log`."""
        self._kinds = list(kinds)
        with log.open("ab") as output:
            # An own session: Ctrl-C reaches the test process alone, which then cleans up in order.
            self._process = subprocess.Popen(
                ["unshare", *self._options(), "--fork", "--kill-child", "--", *map(str, program)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin", "LC_ALL": "C"},
                start_new_session=True,
            )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            wait_until(
                lambda: self._process.poll() is not None or bool(children.read_text()), 10, "start of a namespace"
            )
            if self._process.poll() is not None:
                raise LabError(f"{program[0]} ended at once: {log.read_text()[-2000:]}")
            self.pid = int(children.read_text())
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """The command that runs a program in these namespaces."""
        return ["nsenter", f"--target={self.pid}", *self._options(), "--", *map(str, words)]

    def close(self) -> None:
        """End the process, and with it every other one in its process namespace. May be called twice."""
        if self.running:
            end_process(self.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _options(self) -> list[str]:
        return [f"--{kind}" for kind in self._kinds]
