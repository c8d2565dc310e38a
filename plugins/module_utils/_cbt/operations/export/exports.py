# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exports of this host, each in a folder of its own that only this user can enter.

``export.json`` is what is served. The process of the server locks the file ``lock`` as long as it lives, and writes its
id to it. So it is known whether the server of an export runs, also if another process has its id by then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import typing as t

from ...errors import Refused
from ...runtime import own_folder
from ...trusted_files import opened
from .plan import ExportPlan, Folders, TcpAddress, UnixAddress

ROOTS_SOCKETS = "/run/kvm-cbt-exports"
RECORD, LOCK, ARCHIVE, START, LOG = "export.json", "lock", "engine.pyz", "start.sock", "server.log"


@dataclasses.dataclass(frozen=True)
class Export:
    """An export of this host. ``hold`` is the id of its hold, None without one. ``pid`` is None if no server runs."""

    plan: ExportPlan
    hold: str | None
    pid: int | None = None


@contextlib.contextmanager
def changing() -> t.Iterator[None]:
    """Exclude other runs that start or end exports of this user."""
    with opened(_root(), os.O_RDONLY | os.O_DIRECTORY) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _root() -> str:
    with own_folder() as (path, folder):
        with contextlib.suppress(FileExistsError):
            os.mkdir("exports", 0o700, dir_fd=folder)
        return os.path.join(path, "exports")


def default_folder() -> str:
    """Return the folder for sockets. QEMU's user must be able to enter that of root."""
    return ROOTS_SOCKETS if os.geteuid() == 0 else os.path.join(os.path.dirname(_root()), "sockets")


def folder_of(name: str) -> str:
    """Return the folder of an export."""
    return os.path.join(_root(), name)


def names() -> list[str]:
    """Return the names of the exports of this user on this host."""
    root = _root()
    return sorted(each for each in os.listdir(root) if os.path.exists(os.path.join(root, each, RECORD)))


def read(name: str) -> Export | None:
    """Return an export; None if there is none. Raises Refused if its record cannot be read."""
    path = os.path.join(folder_of(name), RECORD)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return Export(plan_of(found["plan"]), found["hold"], running(name))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"Cannot read {path}: {error}. End the server of {name}, and delete its folder.") from error


def write(export: Export) -> None:
    """Keep an export."""
    folder = folder_of(export.plan.name)
    os.makedirs(folder, 0o700, exist_ok=True)
    temporary = os.path.join(folder, f"{RECORD}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"plan": as_data(export.plan), "hold": export.hold}, file)
    os.replace(temporary, os.path.join(folder, RECORD))


def forget(name: str) -> None:
    """Delete the folder of an export."""
    shutil.rmtree(folder_of(name), ignore_errors=True)


def running(name: str) -> int | None:
    """Return the process id of the server of an export; None if none runs."""
    try:
        with open(os.path.join(folder_of(name), LOCK), encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


def as_data(plan: ExportPlan) -> dict[str, t.Any]:
    """Return a plan as JSON can keep it."""
    return dataclasses.asdict(plan)


def plan_of(data: t.Mapping[str, t.Any]) -> ExportPlan:
    """Return the plan from what ``as_data`` returned. Raises KeyError or TypeError for anything else."""
    kind = UnixAddress if "folder" in data["address"] else TcpAddress
    return ExportPlan(**{**data, "address": kind(**data["address"]), "folders": Folders(**data["folders"])})
