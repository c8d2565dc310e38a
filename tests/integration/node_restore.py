# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One restore of a copy of a machine by the engine alone, run as a program inside a node of the lab, whose Python has no Ansible.

Reads a JSON object from standard input: ``domain``, ``repository``, ``uri``, ``dest`` and ``new_name``.
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
    wish = MachineOptions(new_uuid=True, new_macs=True, start=True)
    request = RestoreRequest(asked["domain"], dest=asked["dest"], new_name=asked["new_name"], machine=wish)
    try:
        with connect(asked["uri"]) as session:
            print(json.dumps({"path": restore(open_repository(asked["repository"]), request, session).disks[0].path}))
    except CbtError as error:
        print(json.dumps({"failed": str(error)}))


if __name__ == "__main__":
    main()
