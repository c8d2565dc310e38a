# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One restore of a machine by the engine alone, run as a program inside a node of the lab, whose Python has no Ansible.

Reads a JSON object from standard input: ``domain``, ``repository``, ``uri``, ``dest``, ``new_name`` (null for the machine itself) and
``machine`` (arguments of ``MachineOptions``; by default a copy that is started).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def main() -> None:
    """Restore as standard input says; prints what became of it as one JSON object."""
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(_PLUGINS / "module_utils")]
    from _cbt.errors import CbtError
    from _cbt.hypervisor.connection import connect
    from _cbt.operations.restore import machine
    from _cbt.operations.restore.restore import MachineOptions, RestoreRequest, restore
    from _cbt.repository.repository import open_repository

    asked = json.load(sys.stdin)
    machine.SEEN_WITHIN = 0
    wish = MachineOptions(**asked.get("machine", {"new_uuid": True, "new_macs": True, "start": True}))
    request = RestoreRequest(asked["domain"], dest=asked["dest"], new_name=asked["new_name"], machine=wish)
    try:
        with connect(asked["uri"]) as session:
            done = restore(open_repository(asked["repository"]), request, session)
    except CbtError as error:
        print(json.dumps({"failed": str(error)}))
        return
    assert done.machine is not None
    print(json.dumps({"path": done.disks[0].path, "changes": done.machine.changes, "warnings": done.warnings}))


if __name__ == "__main__":
    main()
