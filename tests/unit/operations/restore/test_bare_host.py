# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with nothing but Python restores and verifies what was stored with zlib or as it is, and says what the other codecs need."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from disks_for_tests import MemoryDisk, block
from samples import point, record

from _cbt.control import Control
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.point.new_point import Files, NewPoint, StoringOptions
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import leases

RESTORE = """
import importlib.abc, json, sys
class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] not in {*sys.stdlib_module_names, "_cbt"} or name == "compression":
            raise ImportError(name)
sys.meta_path.insert(0, Bare())
sys.path.insert(0, sys.argv[1])
from _cbt.errors import CbtError
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import open_repository
try:
    restore(open_repository(sys.argv[2]), RestoreRequest("web1", dest=sys.argv[3], format="raw"), None)
    print(json.dumps([verdict.status for verdict in verify(open_repository(sys.argv[2]), VerifyRequest(level="data"))[0]]))
except CbtError as error:
    print(json.dumps(str(error)))
"""


class Disk(MemoryDisk):
    """Zeroes, blocks that shrink, and one that does not."""

    def __init__(self) -> None:
        super().__init__([1, 0, 2, 2, 3], short=512)

    def content(self, first: int, stop: int) -> bytes:
        blocks = (bytes([kind]) * BLOCK_SIZE if kind < 3 else block(kind) for kind in self.kinds[first:stop])
        return b"".join(blocks)[: self.size - first * BLOCK_SIZE]


def described(maps: Files, files: Files) -> RestorePoint:
    return point(1, (record(size=Disk().size, map=maps["vda"]),), files=files)


def store(repository: Repository, compression: str) -> None:
    """Make a restore point of the disk."""
    with leases.held(repository, "backup") as lease:
        new = NewPoint(lease, point(1).key, StoringOptions(compression), {}, Control())
        new.read(Disk(), "vda", None)  # type: ignore[arg-type]
        new.publish({"domain.xml": lambda: b"<domain/>"}, described, lambda _target: contextlib.nullcontext(Disk()))  # type: ignore[arg-type,return-value]


def bare(place: Path, dest: Path) -> object:
    """What a host without any module says that restores and verifies."""
    dest.mkdir()
    engine = str(Path(__file__).resolve().parents[4] / "plugins" / "module_utils")
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", RESTORE, engine, str(place), str(dest)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    )


@pytest.mark.parametrize("compression", ["zlib", "none"])
def test_a_point_stored_with_python_alone_is_restored_with_python_alone(
    compression: str, repository: Repository, place: Path, tmp_path: Path
) -> None:
    store(repository, compression)
    assert bare(place, tmp_path / "restored") == ["ok"]
    (image,) = (tmp_path / "restored").iterdir()
    assert image.read_bytes() == Disk().content(0, 5)


@pytest.mark.parametrize(("compression", "package"), [("lz4", "python3-lz4"), ("zstd", "python3-zstandard")])
def test_a_restore_that_needs_a_module_names_it_and_leaves_nothing(
    compression: str, package: str, repository: Repository, place: Path, tmp_path: Path
) -> None:
    store(repository, compression)
    assert f"Install {package}" in str(bare(place, tmp_path / "restored"))
    assert list((tmp_path / "restored").iterdir()) == []
