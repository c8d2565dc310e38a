# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a restore, no definition reads the restored disk as something else."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from samples import OTHER_UUID, UUID

from _cbt.errors import Refused
from _cbt.hypervisor.connection import Session
from _cbt.operations.restore.definitions import check_readers, plain_texts
from _cbt.operations.restore.plan import DiskRestore


@dataclasses.dataclass(frozen=True)
class Defined:
    """A domain, and the connection to libvirt that knows it alone."""

    disk: str | None
    uuid: str = OTHER_UUID
    name: str = "web2"
    saved: bool = False

    @property
    def api(self) -> Defined:
        return self

    def hasManagedSaveImage(self) -> bool:  # noqa: N802  as libvirt calls it
        return self.saved

    def domains(self) -> list[Defined]:
        return [self]

    def xml(self, _flags: int) -> str | None:
        return None if self.disk is None else f"<domain><devices>{self.disk}</devices></domain>"


def disk(driver: str, inner: str = "", more: str = "", source: str = "file='/i/a'") -> str:
    kind = "block" if source.startswith("dev") else "file"
    return f"<disk type='{kind}'><driver {driver}/><source {source}>{inner}</source>{more}<target dev='vdb'/></disk>"


ENCRYPTION = "<encryption format='luks'/>"
SLICES = "<slices><slice type='storage' offset='0' size='512'/></slices>"
# The disk of the definition, the format of the restored disk, and why it cannot be read there; None if it can.
READERS: dict[str, tuple[str | None, str, str | None]] = {
    "the same format": (disk("type='qcow2'"), "qcow2", None),
    "RAW": (disk("type='raw'"), "raw", None),
    "no format, which is RAW": (disk("name='qemu'"), "raw", None),
    "no format": (disk("name='qemu'"), "qcow2", "vdb is raw, not qcow2 \\(set format: raw\\)"),
    "another format": (disk("type='qcow2'"), "raw", "vdb is qcow2, not raw \\(set format: qcow2\\)"),
    "on a device": (disk("type='raw'", source="dev='/i/a'"), "qcow2", "vdb is raw, not qcow2"),
    "encrypted": (disk("type='raw'", ENCRYPTION), "raw", "vdb is encrypted"),
    "encrypted, older place": (disk("type='raw'", more=ENCRYPTION), "raw", "vdb is encrypted"),
    "encrypted qcow2": (disk("type='qcow2'", ENCRYPTION), "qcow2", "vdb is encrypted"),
    "a slice": (disk("type='raw'", SLICES), "raw", "vdb is a slice of an image"),
    "a data file": (disk("type='qcow2'", "<dataStore type='file'/>"), "qcow2", "vdb has its data in another image"),
    "another image": (disk("type='raw'", ENCRYPTION, source="file='/i/b'"), "raw", None),
    "by a way up": (disk("type='raw'", source="file='/i/x/../a'"), "qcow2", "vdb is raw, not qcow2"),
    "without a medium": ("<disk type='file' device='cdrom'><target dev='sda'/></disk>", "raw", None),
    "gone meanwhile": (None, "raw", None),
}


@pytest.mark.parametrize(("defined", "fmt", "why"), READERS.values(), ids=READERS.keys())
def test_a_domain_that_could_not_read_the_restored_disk_is_named(
    defined: str | None, fmt: str, why: str | None
) -> None:
    plans = [DiskRestore("vda", "/i/a", fmt, 512), DiskRestore("vdc", "nbd://host/a", "raw", 512)]
    if why is None:
        check_readers(t.cast(Session, Defined(defined)), plans, None)
    else:
        with pytest.raises(Refused, match=f"restore vda to /i/a: web2 could not read it, .*that {why}.*define: true"):
            check_readers(t.cast(Session, Defined(defined)), plans, None)
    check_readers(t.cast(Session, Defined(defined)), plans, OTHER_UUID)  # its definition is replaced


def test_a_disk_of_a_domain_whose_memory_is_saved_is_not_replaced() -> None:
    saved = t.cast(Session, Defined(disk("type='raw'"), saved=True))
    with pytest.raises(Refused, match="restore vda to /i/a: the memory of web2 is saved .*managedsave-remove web2"):
        check_readers(saved, [DiskRestore("vda", "/i/a", "raw", 512)], None)
    check_readers(saved, [DiskRestore("vda", "/i/b", "raw", 512)], None)


def test_a_disk_that_was_encrypted_is_in_the_warnings() -> None:
    xml = f"<domain><uuid>{UUID}</uuid><devices>{disk('', ENCRYPTION)}</devices></domain>"
    plans = [DiskRestore("vda", "/r/a", "raw", 512), DiskRestore("vdb", "/r/b", "raw", 512)]
    assert plain_texts(xml, plans) == [
        "vdb was encrypted, and /r/b has its content in plain text. Encrypt it again, or keep it on encrypted storage."
    ]
