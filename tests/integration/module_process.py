# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module of the collection as a process of its own, as Ansible would start it, so that signals can strike it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]

# What Ansible's wrapper does on the target: hand over the arguments, then run the module's main.
_WRAPPER = """
import json, runpy, sys
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": json.load(open(sys.argv[2]))}).encode()
basic._ANSIBLE_PROFILE = "legacy"
exec(sys.argv[3])
runpy.run_module("ansible_collections.kvm.cbt.plugins.modules." + sys.argv[1], run_name="__main__", alter_sys=True)
"""


def collection_path(folder: Path) -> Path:
    """A folder from which the collection can be imported under its full name."""
    link = folder / "collections" / "ansible_collections" / "kvm" / "cbt"
    if not link.exists():
        link.parent.mkdir(parents=True)
        link.symlink_to(_ROOT)
    return folder / "collections"


class ModuleProcess:
    """One run of a module; ``before`` is Python code that runs in its process first."""

    def __init__(
        self, folder: Path, module: str, arguments: t.Mapping[str, t.Any], check: bool = False, before: str = ""
    ) -> None:
        handle, path = tempfile.mkstemp(dir=folder, suffix=".json")
        with os.fdopen(handle, "w") as file:
            json.dump({**arguments, "_ansible_check_mode": check, "_ansible_module_name": f"kvm.cbt.{module}"}, file)
        environment = dict(os.environ, PYTHONPATH=str(collection_path(folder)), LC_ALL="C.UTF-8")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRAPPER, module, path, before],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    def signal(self, number: int) -> None:
        """Send a signal to the module's process alone."""
        self.process.send_signal(number)

    def result_if_any(self) -> dict[str, t.Any] | None:
        """The module's answer, None if a signal ended the process before it had one."""
        out, _err = self.process.communicate(timeout=300)
        return json.loads(out) if out else None

    def result(self, timeout: float = 300) -> dict[str, t.Any]:
        """The module's JSON answer; fails the test if there is none, such as a traceback."""
        out, err = self.process.communicate(timeout=timeout)
        try:
            return t.cast("dict[str, t.Any]", json.loads(out))
        except ValueError:
            raise AssertionError(f"no JSON from the module: {out.decode()} {err.decode()}") from None


def created(folder: Path, location: str | Path, **options: t.Any) -> str:
    """Create a repository as people do, and return its location."""
    result = run_module(folder, "cbt_repository", repository=str(location), **options)
    assert result["changed"], result
    return str(location)


def run_module(folder: Path, module: str, check: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
    """Run a module to its end and return its answer, failed or not. A traceback fails the test."""
    result = ModuleProcess(folder, module, arguments, check).result()
    assert "exception" not in result or "libvirt-python" in result.get("msg", ""), result
    return result
