# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ssh server for root on this machine's loopback, with keys of its own."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from lab.closing import Closing
from lab.errors import LabError
from lab.process import end_process, run_tool, wait_until
from lab.tree import sshd_files

# In a mount namespace: the user and the folder that sshd insists on are not added to the machine.
_PROGRAM = """
grep -q '^sshd:' /etc/passwd || {
    cp /etc/passwd "$1/passwd"
    echo 'sshd:x:991:65534::/run/sshd:/usr/sbin/nologin' >>"$1/passwd"
    mount --bind "$1/passwd" /etc/passwd
}
mkdir -p /run/sshd
exec "$2" -D -e -f "$1/sshd_config"
"""
_INHERITED = ("XDG_CACHE_HOME", "XDG_STATE_HOME")


class Sshd(Closing):
    """The server, from start to end. It ends with the test process at the latest."""

    def __init__(self, folder: Path) -> None:
        """Make keys and settings in a new `folder`."""
        folder.mkdir(mode=0o700)
        for name in ("host_key", "id_ed25519"):
            run_tool(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {name}", "-f", folder / name])
        self._folder = folder
        self._port = _free_port()
        (folder / "known_hosts").write_text(f"lab {(folder / 'host_key.pub').read_text()}")
        (folder / "sshd_config").write_text(self._settings())
        files = sshd_files()
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--", "sh", "-euc", _PROGRAM, "sh"]
        libraries = next((files / "usr/lib").glob("*-linux-gnu"))
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [*command, folder, files / "usr/sbin/sshd"],
                env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, 30, "start of sshd")
        except BaseException:
            self.close()
            raise

    @property
    def client_options(self) -> str:
        """Options of `ssh` that reach the server as root under any hostname."""
        settings = {
            "HostName": "127.0.0.1",
            "Port": self._port,
            "User": "root",
            "HostKeyAlias": "lab",
            "UserKnownHostsFile": self._folder / "known_hosts",
            "IdentityFile": self._folder / "id_ed25519",
            "IdentitiesOnly": "yes",
        }
        return " ".join(["-F none", *(f"-o {name}={value}" for name, value in settings.items())])

    def close(self) -> None:
        """End the server. May be called twice."""
        if self._process.poll() is None:
            end_process(self._process.pid)
        self._process.wait()

    def _settings(self) -> str:
        variables = " ".join(f"{name}={os.environ[name]}" for name in _INHERITED if name in os.environ)
        lines = [
            f"ListenAddress 127.0.0.1:{self._port}",
            f"HostKey {self._folder}/host_key",
            f"AuthorizedKeysFile {self._folder}/id_ed25519.pub",
            "StrictModes no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "UsePAM no",
            "PidFile none",
            "Subsystem sftp internal-sftp",
            *([f"SetEnv {variables}"] if variables else []),
        ]
        return "".join(f"{line}\n" for line in lines)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise LabError(f"sshd ended: {(self._folder / 'log').read_text()[-2000:]}")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
