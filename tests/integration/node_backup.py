# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One backup by the engine alone, run as a program inside a node of the lab, whose Python has no Ansible.

Reads a JSON object from standard input: ``repository``, ``connection`` and ``transport`` (arguments of ``connect`` and ``Transport``),
the rest as ``witness.ask`` takes it. Prints what became of it as one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]


def main() -> None:
    """Back up as standard input says."""
    sys.dont_write_bytecode = True  # the checkout is read-only here
    sys.path[:0] = [str(_TESTS), str(_TESTS.parent / "plugins" / "module_utils")]
    from witness import ask

    from _cbt.errors import CbtError
    from _cbt.hypervisor.connection import connect
    from _cbt.operations.backup.backup import backup
    from _cbt.operations.backup.transport import Transport
    from _cbt.repository.creation import open_or_create

    arguments = json.load(sys.stdin)
    if "transport" in arguments:
        arguments["transport"] = Transport(**arguments["transport"])
    location, connection = arguments.pop("repository"), arguments.pop("connection", {})
    try:
        with connect(**connection) as session:
            result = backup(session, open_or_create(location), ask(**arguments))
    except CbtError as error:
        print(json.dumps({"failed": str(error)}))
        return
    disks = {
        disk.target: {"mode": disk.mode, "reason": disk.reason, "dirty_bytes": disk.dirty_bytes}
        for disk in result.disks
    }
    point = result.point
    assert point is not None
    told = {"id": point.id, "checkpoint": point.checkpoint, "host": point.host, "versions": dict(point.versions)}
    print(json.dumps({"disks": disks, "warnings": result.warnings, **told}))


class Runner(t.Protocol):
    """What runs a program; a node of the lab is one."""

    def run(
        self,
        words: t.Sequence[str | Path],
        environment: t.Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""


def back_up_in(
    node: Runner,
    repository: str,
    prefix: t.Sequence[str] = (),
    environment: t.Mapping[str, str] | None = None,
    **wanted: t.Any,
) -> t.Any:
    """Back up inside a node and return what the program told. ``prefix`` is put before the program, to change its user for one."""
    done = node.run(
        [*prefix, "/usr/bin/python3", __file__], environment, json.dumps({"repository": repository, **wanted})
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
