"""What modules load when they start.

A module is compiled from source each time it runs, so each file that it loads costs processor time. Those that need no
repository load nothing of it, and what few runs need is loaded when it is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ENGINE = ROOT / "plugins/module_utils/_cbt"
_LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module("ansible_collections.kvm.cbt.plugins.modules." + name)
print("\\n".join(name for name in sys.modules if "._cbt." in name))
"""

_ENCRYPTION = {"repository.crypto.encryption", "repository.crypto.key_slots"}
_ANYWHERE = {"log", "repository.format.zstd", "repository.stores.s3_store", *_ENCRYPTION}
_LIBVIRT = {"hypervisor.connection"}
_HEALING = {"operations.upkeep.healing", "repository.sharing.relocation"}
_SHUT_OFF = {"hypervisor.offline_export", "images.qemu_img", "programs"}
# What each module starts without, because few of its runs need it.
RARE = {
    "cbt_backup": {
        *_HEALING,
        *_SHUT_OFF,
        "hypervisor.definition",
        "hypervisor.storage_pools",
        "repository.sharing.holds",
        "repository.sharing.trash",
    },
    "cbt_copy": {*_LIBVIRT, *_HEALING, "repository.sharing.holds", "repository.sharing.trash"},
    "cbt_restore": {"hypervisor.allowed.filtering", "hypervisor.storage_pools", "operations.restore.machine"},
    "cbt_retention": {*_LIBVIRT, "operations.upkeep.compaction", "repository.sharing.relocation"},
    "cbt_verify": {*_LIBVIRT, *_HEALING, "repository.sharing.trash"},
}


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


@pytest.mark.parametrize("module", RARE)
def test_a_module_starts_without_what_few_runs_need(module: str, tmp_path: Path) -> None:
    rare = RARE[module] | _ANYWHERE
    assert {name for name in rare if not (ENGINE / f"{name.replace('.', '/')}.py").exists()} == set()
    assert loaded(tmp_path, module) & rare == set()
