"""Who is measured: the engine, virtnbdbackup and nbdcopy, each on a domain of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import urlencode

from lab.domain import BlockDomain
from lab.object_store import Rclone
from lab.process import run_tool, wait_until
from lab.reference import pull_job_xml
from timed import BenchmarkError, Measurement, measure, measure_json, warm

_HERE = Path(__file__).resolve().parent
_COMPRESSION: dict[str, list[str]] = {"none": [], "lz4": ["-z"]}


class Contender:
    """Shared: a domain with one disk `vda`, and a folder to write to."""

    name = ""

    def __init__(self, domain: BlockDomain) -> None:
        self.domain = domain
        self.folder = domain.hypervisor.folder()
        self.backup_folder = self.folder / "backup"
        self.restore_folder = self.folder / "restore"

    def full(self, compression: str) -> Measurement:
        """A first full backup into an empty place, which begins tracking."""
        self.forget_backups()
        warm(self.domain.image("vda"))
        os.sync()
        return self._full(compression)

    def incremental(self) -> Measurement:
        """A backup of what changed since the last one."""
        os.sync()
        return self._incremental()

    def restore(self) -> Measurement:
        """Restore what was backed up last to a new qcow2 image."""
        _clear(self.restore_folder)
        warm(self.backup_folder)
        self.restore_folder.mkdir()
        os.sync()
        return self._restore()

    def verify(self) -> Measurement:
        """Read and check what was backed up last."""
        warm(self.backup_folder)
        return self._verify()

    def restored_image(self) -> Path:
        """What `restore` made, once nobody writes to it any more."""
        (image,) = self.restore_folder.glob("*.qcow2")
        wait_until(lambda: _unlocked(image), 60, "end of writing to the restored image")
        return image

    def forget_restored(self) -> None:
        """Give back the space of restored images."""
        _clear(self.restore_folder)

    def close(self) -> None:
        """Give back all space and end the domain."""
        self.domain.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def forget_backups(self) -> None:
        """Give back the space of backups and end tracking."""
        _clear(self.backup_folder)
        for checkpoint in self.domain.handle.listAllCheckpoints():
            checkpoint.delete()

    def _full(self, compression: str) -> Measurement:
        raise NotImplementedError

    def _incremental(self) -> Measurement:
        raise NotImplementedError

    def _restore(self) -> Measurement:
        raise NotImplementedError

    def _verify(self) -> Measurement:
        raise NotImplementedError


class Engine(Contender):
    """The engine of this collection."""

    name = "kvm.cbt"

    def command(self, verb: str, *options: str | Path) -> list[str | Path]:
        """The command line of one run."""
        script = _HERE / "engine_run.py"
        return [sys.executable, script, verb, self.backup_folder, self.domain.name, *options]

    def _full(self, compression: str) -> Measurement:
        return self._backup("full", "--compression", compression)

    def _incremental(self) -> Measurement:
        return self._backup("incremental", "--compression", "none")

    def _backup(self, expected: str, *options: str) -> Measurement:
        measurement, done = measure_json(self.command("backup", *options), self.backup_folder)
        if done["disks"]["vda"]["mode"] != expected:
            raise BenchmarkError(f"A backup was to be {expected} and was not: {json.dumps(done)}")
        return measurement

    def _restore(self) -> Measurement:
        command = self.command("restore", "--dest", self.restore_folder)
        return measure(command, self.restore_folder)[0]

    def _verify(self) -> Measurement:
        return measure(self.command("verify"))[0]


class EncryptedEngine(Engine):
    """The same with an encrypted repository."""

    name = "encrypted"

    def command(self, verb: str, *options: str | Path) -> list[str | Path]:
        return [*super().command(verb, *options), "--encrypted"]


class S3Engine(Engine):
    """The same with a repository in a bucket, served from this machine's disk by one process, which shares the processors."""

    name = "S3"

    def __init__(self, domain: BlockDomain) -> None:
        super().__init__(domain)
        self._server = Rclone()
        self._bucket = ""
        account = self._server.account
        self._credentials = self.folder / "credentials"  # a file, for arguments can be seen
        self._credentials.write_text(
            f"[default]\naws_access_key_id = {account.access_key}\naws_secret_access_key = {account.secret_key}\n"
        )

    def command(self, verb: str, *options: str | Path) -> list[str | Path]:
        environment = {
            "AWS_ENDPOINT_URL": self._server.account.endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": self._credentials,
        }
        words = [
            f"s3://{self._bucket}" if word == self.backup_folder else word for word in super().command(verb, *options)
        ]
        return ["env", *(f"{name}={value}" for name, value in environment.items()), *words]

    def forget_backups(self) -> None:
        super().forget_backups()
        if self._bucket:
            shutil.rmtree(self._server.data / self._bucket)
        self._bucket = self._server.account.bucket()

    def close(self) -> None:
        """End the server; the domain is another contender's too."""
        self._server.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _backup(self, expected: str, *options: str) -> Measurement:
        return measure(self.command("backup", *options), self._server.data)[0]


class Peer(Contender):
    """Debian's virtnbdbackup. It makes nothing durable; see `Measurement.settle_seconds`."""

    name = "virtnbdbackup"

    def _full(self, compression: str) -> Measurement:
        return self._backup("full", _COMPRESSION[compression])

    def _incremental(self) -> Measurement:
        return self._backup("inc", [])

    def _backup(self, level: str, options: list[str]) -> Measurement:
        words = ["-n", "-d", self.domain.name, "-l", level, "-o", str(self.backup_folder)]
        return measure(["virtnbdbackup", *words, *options], self.backup_folder)[0]

    def _restore(self) -> Measurement:
        return measure(self._restore_command("restore"), self.restore_folder)[0]

    def _verify(self) -> Measurement:
        if "verify" in run_tool(["virtnbdrestore", "--help"]).split("Examples")[0]:
            return measure(self._restore_command("verify"))[0]
        # This version cannot; do what later ones do.
        files = sorted(self.backup_folder.glob("*.data"))
        return measure([sys.executable, _HERE / "adler.py", *files])[0]

    def _restore_command(self, action: str) -> list[str | Path]:
        places: list[str | Path] = ["-i", self.backup_folder, "-o", self.restore_folder]
        log = self.folder / "restore.log"
        return ["virtnbdrestore", "-n", "-a", action, *places, "-L", log]


class RawCopy:
    """nbdcopy of the export of a backup job to a sparse file; the job itself is not timed."""

    def __init__(self, domain: BlockDomain, flush: bool) -> None:
        self.name = "nbdcopy --flush" if flush else "nbdcopy"
        self._options = ["--flush"] if flush else []
        self._domain = domain

    def full(self, _compression: str) -> Measurement:
        """Copy the whole disk."""
        warm(self._domain.image("vda"))
        folder = self._domain.hypervisor.folder()
        self._domain.handle.backupBegin(pull_job_xml(self._domain, folder), None, 0)
        try:
            os.sync()
            uri = f"nbd+unix:///vda?{urlencode({'socket': folder / 'socket'})}"
            copy = folder / "vda.raw"
            return measure(["nbdcopy", *self._options, uri, copy], copy)[0]
        finally:
            self._domain.abort_job()
            shutil.rmtree(folder)


def _unlocked(image: Path) -> bool:
    """Whether no QEMU process has an image open for writing; qemu-img refuses while one has."""
    try:
        run_tool(["qemu-img", "info", image])
    except Exception:
        return False
    return True


def _clear(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
