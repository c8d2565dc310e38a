"""What modules load when they start: those that need no repository load nothing of it, which more than halves their imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module("ansible_collections.kvm.cbt.plugins.modules." + name)
print("\\n".join(name for name in sys.modules if "._cbt." in name))
"""


def loaded(tmp_path: Path, *modules: str) -> set[str]:
    """The parts of the engine that a process has loaded once it has imported these modules."""
    tree = tmp_path / "ansible_collections" / "kvm"
    tree.mkdir(parents=True, exist_ok=True)
    if not (tree / "cbt").exists():
        (tree / "cbt").symlink_to(ROOT)
    ran = subprocess.run(
        [sys.executable, "-c", _LOADED, *modules],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {line.partition("._cbt.")[2] for line in ran.stdout.splitlines()}


def test_modules_without_a_repository_load_nothing_of_it(tmp_path: Path) -> None:
    found = loaded(tmp_path, "cbt_domain_info", "cbt_capability", "cbt_image")
    assert "operations.domains" in found
    assert {name for name in found if name.split(".")[0] == "repository"} == set()


def test_a_module_with_a_repository_loads_it(tmp_path: Path) -> None:
    assert "repository.repository" in loaded(tmp_path, "cbt_verify")
