# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine as one file: it is the same from a folder and from a task's archive, and runs alone."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from _cbt import archive

ENGINE = Path(archive.__file__).parent
_FROM_TASK = """
import io, sys
sys.path.insert(0, sys.argv[1])
from collection.plugins._cbt import archive
assert "task.zip" in archive.__file__, archive.__file__
file = io.BytesIO()
archive.write(file, "grid")
sys.stdout.buffer.write(file.getvalue())
"""


def written(module: str = "grid") -> bytes:
    file = io.BytesIO()
    archive.write(file, module)
    return file.getvalue()


def test_it_has_every_file_of_the_engine_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(written())) as made:
        names = set(made.namelist())
        assert names == {f"_cbt/{path.relative_to(ENGINE)}" for path in ENGINE.rglob("*.py")} | {"__main__.py"}
        assert made.read("_cbt/grid.py") == (ENGINE / "grid.py").read_bytes()


def test_equal_engines_make_equal_archives() -> None:
    assert written() == written()
    assert written("control") != written()


def test_a_task_that_runs_from_an_archive_makes_the_same(tmp_path: Path) -> None:
    """Ansible ships the engine deep inside a zip archive, and only the files that the module imports."""
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as task:
        for path in ENGINE.rglob("*.py"):
            task.write(path, f"collection/plugins/_cbt/{path.relative_to(ENGINE)}")
        task.writestr("collection/__init__.py", "")
        task.writestr("collection/plugins/__init__.py", "")
        task.writestr("collection/plugins/_cbt_other.py", "")
    made = subprocess.run(
        [sys.executable, "-c", _FROM_TASK, tmp_path / "task.zip"], stdout=subprocess.PIPE, check=True
    ).stdout
    assert made == written()


def test_it_runs_alone(tmp_path: Path) -> None:
    """Isolated, in an empty folder: the entry without its arguments is an error of the engine, not of an import."""
    (tmp_path / "engine.pyz").write_bytes(written("operations.export.server"))
    ran = subprocess.run(
        [sys.executable, "-I", "engine.pyz", tmp_path], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False
    )
    assert ran.returncode == 1
    assert "FileNotFoundError" in ran.stderr and "engine.pyz/_cbt/operations/export/server.py" in ran.stderr
