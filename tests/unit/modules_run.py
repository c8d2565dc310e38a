# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs modules of the collection, several in one process, without Ansible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import contextlib, importlib, io, json, os, sys
from unittest import mock
from ansible.module_utils import basic
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.repository.crypto import key_slots

key_slots.COST = 1 << 10

basic._ANSIBLE_PROFILE = "legacy"
results = {}
for case, (name, options, missing, environment) in json.load(sys.stdin).items():
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode()
    module = importlib.import_module("ansible_collections.kvm.cbt.plugins.modules." + name)
    printed = io.StringIO()
    # Leaving patch.dict forgets what was imported within, which a compiled library does not survive.
    hidden = mock.patch.dict(sys.modules, dict.fromkeys(missing)) if missing else contextlib.nullcontext()
    variables = mock.patch.dict(os.environ, environment)
    with contextlib.redirect_stdout(printed), hidden, variables:
        try:
            module.main()
        except SystemExit as ended:
            results[case] = {"code": ended.code, **json.loads(printed.getvalue())}
print(json.dumps(results))
"""


class Case(NamedTuple):
    """A module with its options, without some Python libraries, and with variables in its environment."""

    module: str
    options: dict[str, Any]
    missing: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}


def run_modules(folder: Path, cases: Mapping[str, Case]) -> dict[str, dict[str, Any]]:
    """Return what each case returned, with its exit status as ``code``. ``{folder}`` in options is the folder."""
    where = folder / "collections" / "ansible_collections" / "kvm"
    where.mkdir(parents=True)
    (where / "cbt").symlink_to(_ROOT)
    foreign = ("CBT_", "LIBVIRT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    ran = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps(cases).replace("{folder}", str(folder)),
        env={**kept, "PYTHONPATH": str(folder / "collections"), "XDG_STATE_HOME": str(folder / "state")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, Any]] = json.loads(ran.stdout)
    return found
