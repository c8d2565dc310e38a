# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object stores on this machine: accounts, buckets, and a server of one process (rclone) over a folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.certificates import self_signed
from lab.closing import Closing
from lab.errors import LabError
from lab.process import end_process, wait_until
from lab.workspace import make_workspace

_START_TIMEOUT = 30.0


@dataclass(frozen=True)
class Account:
    """Where an object store is and who may use it."""

    endpoint: str
    access_key: str
    secret_key: str
    ca_bundle: str | None = None

    def client(self) -> Any:
        """A client of the SDK, for what a test does by itself."""
        import boto3

        key = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
        return boto3.client("s3", endpoint_url=self.endpoint, verify=self.ca_bundle, region_name="us-east-1", **key)

    def bucket(self, **options: Any) -> str:
        """Make a bucket of a new name."""
        name = f"lab-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name, **options)
        return name

    @property
    def options(self) -> dict[str, str]:
        """What the modules' option ``s3`` takes."""
        trust = {"ca_bundle": self.ca_bundle} if self.ca_bundle is not None else {}
        return {"endpoint_url": self.endpoint, "access_key": self.access_key, "secret_key": self.secret_key, **trust}


def rclone_program() -> str | None:
    """rclone of PyPI beside this Python or in the checkout's environment, or of the system."""
    folders = (Path(sys.executable).parent, Path(__file__).parents[2] / ".venv" / "bin")
    return next((str(folder / "rclone") for folder in folders if (folder / "rclone").exists()), shutil.which("rclone"))


class Rclone(Closing):
    """``rclone serve s3``, over TLS if asked for. Use as a context manager, or call ``close()``."""

    def __init__(self, tls: bool = False) -> None:
        self.folder = make_workspace("rclone-")
        self._port = free_port()
        self._certificate = self.folder / "certificate" if tls else None
        trusted = str(self._certificate) if tls else None
        self.account = Account(f"http{'s' * tls}://127.0.0.1:{self._port}", "LABACCESSKEY", uuid.uuid4().hex, trusted)
        self.data = self.folder / "data"  # buckets are folders of it
        self._server: subprocess.Popen[bytes] | None = None
        try:
            self.data.mkdir()
            if self._certificate is not None:
                self_signed(self.folder / "key", self._certificate, "lab", "subjectAltName=IP:127.0.0.1")
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Serve what is in the folder."""
        program = rclone_program()
        if program is None:
            raise LabError("rclone is not installed")
        # Unless told otherwise it reads each stored object once more to compare its MD5, and takes twice as long.
        words = [
            program,
            "serve",
            "s3",
            "--config",
            "",
            "--addr",
            f"127.0.0.1:{self._port}",
            "--ignore-checksum",
            self.data,
        ]
        if self._certificate is not None:
            words += ["--cert", self._certificate, "--key", self.folder / "key"]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "RCLONE_AUTH_KEY": f'"{self.account.access_key},{self.account.secret_key}"',
                    "HOME": str(self.folder),
                    "PATH": "/usr/bin:/bin",
                },
                start_new_session=True,
            )
        wait_until(lambda: listens(self._port), _START_TIMEOUT, "start of rclone")

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def close(self) -> None:
        """End the server and forget everything. May be called twice."""
        if self._server is not None:
            end_process(self._server.pid, timeout=10)
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """A port of the loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody serves a port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
