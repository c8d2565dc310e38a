# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine in a zip archive, as which Ansible ships it to a host."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[2] / "plugins/module_utils/_cbt"
_COMPILED = """
import sys
def hook(event, arguments):
    if event == "compile" and "_cbt" in str(arguments[1]):
        print(arguments[1])
sys.addaudithook(hook)
import _cbt
if sys.argv[1:] == ["python's own finder"]:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_cbt")]
import _cbt.operations.verify.verify
loader = sys.modules["_cbt.repository.format.maps"].__loader__
assert "zip" in type(loader).__name__, loader
assert "class MapBuilder" in loader.get_source("_cbt.repository.format.maps")
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip archive of the engine."""
    made = tmp_path_factory.mktemp("zipped") / "engine.zip"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(ENGINE.rglob("*.py")):
            file.write(path, path.relative_to(ENGINE.parent))
    return made


def _compiled(archive: Path, *words: str) -> collections.Counter[str]:
    ran = subprocess.run(
        [sys.executable, "-c", _COMPILED, *words],
        env={**os.environ, "PYTHONPATH": str(archive)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return collections.Counter(Path(line).relative_to(archive).as_posix() for line in ran.stdout.splitlines())


def test_each_file_is_compiled_once(archive: Path) -> None:
    compiled = _compiled(archive)
    assert "_cbt/repository/format/maps.py" in compiled and "_cbt/repository/__init__.py" in compiled
    # Python's own finder has found these two before the engine can.
    before = {"_cbt/__init__.py", "_cbt/zipped.py"}
    assert {name for name, times in compiled.items() if times > 1} <= before


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python compiles each file once")
def test_the_finder_of_python_compiles_each_file_twice(archive: Path) -> None:
    """If this fails, Python was mended and zipped.py can go."""
    assert _compiled(archive, "python's own finder")["_cbt/repository/format/maps.py"] == 2


def test_what_is_not_in_the_archive_is_left_to_python(archive: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "import _cbt.nothing"],
        env={**os.environ, "PYTHONPATH": str(archive)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "No module named '_cbt.nothing'" in ran.stderr
