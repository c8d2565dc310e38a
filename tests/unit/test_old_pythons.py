# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine runs with each Python that hypervisors have: all of it is loaded, and a repository is created and read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[2] / "plugins/module_utils/_cbt"
_SCRIPT = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
from _cbt.repository.format import codecs, names
from _cbt.repository.format.manifests import DiskRecord, RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import Encoded
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import open_repository
from _cbt.repository.sharing import holding, leases
created = open_or_create(sys.argv[1])
block, uuid, point_id = b"x" * 65536, "6f1d0a52-9a3c-4c0e-8a53-0d1b1f6f4a11", "20260101T120000Z-00000001"
writer, builder = created.writer(), MapBuilder(len(block))
with leases.held(created, "backup"):
    builder.put(0, 1, *writer.append([Encoded(created.keys.block_id(block), *codecs.encoder("zlib")(block), len(block))]))
    extents = builder.finish(writer.finish())
    files = created.put_files(names.point_folder(uuid, point_id), {"vda.map": extents.encode()})
    disk = DiskRecord("vda", len(block), "full", "", files["vda.map"], None, {}, {"new_bytes": len(block)})
    created.publish(RestorePoint(point_id, created.id, "web1", uuid, "2026-01-01T12:00:00.000000+00:00", None, None, None,
        point_id, "crash", (disk,), {}, False, {"tag": "value"}, False, "host1", {}))
opened = open_repository(sys.argv[1])
(point,) = opened.points_of().points
assert holding.hold(opened, point, "test").point == point
(run,) = opened.read_map(point, "vda").runs()
assert [bytes(each) for each in opened.reader.disk_blocks(run, len(block))] == [block]
"""


def interpreters(version: str) -> Iterator[str]:
    """The interpreters of a version: of the system, or of pyenv."""
    found = [shutil.which(f"python{version}")]
    found += [str(path) for path in Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for each in filter(None, found):
        if subprocess.run([each, "-c", ""], capture_output=True, check=False).returncode == 0:
            yield each


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_an_interpreter_loads_all_of_the_engine_and_reads_a_repository(version: str, tmp_path: Path) -> None:
    interpreter = next(interpreters(version), None)
    if interpreter is None:
        pytest.skip(f"not installed: Python {version}")
    names = [".".join(path.relative_to(ENGINE.parent).with_suffix("").parts) for path in sorted(ENGINE.rglob("*.py"))]
    needing = {
        "_cbt.repository.stores.s3_client",
        "_cbt.repository.stores.s3_store",
        "_cbt.repository.stores.s3_upload",
    }
    ran = subprocess.run(
        [interpreter, "-c", _SCRIPT, tmp_path / "repository", *(name for name in names if name not in needing)],
        env={**os.environ, "PYTHONPATH": str(ENGINE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
