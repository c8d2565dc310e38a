# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that another process of QEMU has open."""

from __future__ import annotations

import contextlib
import subprocess
import typing as t
from pathlib import Path

from lab.process import wait_until


@contextlib.contextmanager
def running(ready: Path, *command: str | Path) -> t.Iterator[None]:
    """Run a server from when its file `ready` appears until the end of the block."""
    ready.unlink(missing_ok=True)
    process = subprocess.Popen([str(word) for word in command])
    try:
        wait_until(ready.exists, 20, f"{command[0]} is ready")
        yield
    finally:
        while process.poll() is None:  # qemu-nbd loses a signal that comes just when it begins to listen
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)


def qemu_nbd(image: Path, image_format: str, socket: Path, *options: str) -> t.ContextManager[None]:
    """Serve an image at a UNIX socket with qemu-nbd.

    It listens first and opens the image (and takes its locks) later. It writes the file with its process id last.
    """
    ready = socket.with_suffix(".pid")
    words = ("--persistent", f"--format={image_format}", f"--socket={socket}", f"--pid-file={ready}")
    return running(ready, "qemu-nbd", *words, *options, image)
