# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports disks of a restore point, and ends an export."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import typing as t

from ...control import Control
from ...errors import CbtError, Refused
from ...hypervisor.domain_xml.disks import Selection
from ...repository.format import manifests
from ...repository.format.manifests import RestorePoint
from ...repository.location import RepositoryLocation, handed_on
from ...repository.repository import Repository
from ...repository.selecting import select_point
from ...repository.sharing import holding, holds
from ...repository.sharing.holds import Hold
from . import exports, launch
from .exports import Export, default_folder
from .plan import (
    ExportPlan,
    ExportRequest,
    Folders,
    TcpAddress,
    UnixAddress,
    check_name,
    check_same,
    make_plan,
    purpose,
)
from .server import Settings

__all__ = [
    "EndRequest",
    "Export",
    "ExportRequest",
    "Folders",
    "Selection",
    "TcpAddress",
    "UnixAddress",
    "default_folder",
    "end",
    "export",
    "listed",
]


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """An export as it is, or would be, and whether that is a change."""

    export: Export
    changed: bool
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class EndRequest:
    """Which exports to end: one by name, or those of a domain, or of one restore point of it.

    ``host`` is the hostname of the host that serves them; None is this one. On another host, only the holds end.
    """

    name: str | None = None
    domain: str | None = None
    restore_point: str = "latest"
    host: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        elif self.domain is None or self.host is not None:
            raise Refused("Name the export to end, or the domain whose exports on this host are to end.")

    def fits(self, name: str, point: _Served) -> bool:
        """Return whether an export is to end. Pure."""
        if self.name is not None:
            return name == self.name
        return self.domain in (point.domain, point.uuid) and self.restore_point in ("latest", point.restore_point)


class _Served(t.NamedTuple):
    """The restore point that an export serves."""

    domain: str
    uuid: str
    restore_point: str


def listed() -> list[Export]:
    """Return the exports of this user on this host."""
    return [found for found in map(exports.read, exports.names()) if found is not None]


def export(
    repository: Repository,
    location: RepositoryLocation,
    request: ExportRequest,
    control: Control,
    check_only: bool = False,
) -> ExportResult:
    """Export disks of a restore point, unless that export exists and its server runs.

    The restore point is held first. With ``check_only``, nothing is changed, and the result is the prediction. Raises
    CbtError; then there is neither a server nor a new hold.
    """
    found = repository.points_with(request.domain)
    point = select_point(found, request.domain, request.restore_point, request.until)
    plan = make_plan(point, repository.id, location.location, request)
    with exports.changing():
        there = exports.read(plan.name)
        if there is not None:
            check_same(there.plan, plan)
            if there.pid is not None:
                return ExportResult(there, False)
        if check_only:
            return ExportResult(Export(plan, there.hold if there is not None else None), True)
        control.check()
        with control.phase("exporting", name=plan.name, restore_point=point.id):
            return _begin(repository, location, plan, point, control)


def _begin(
    repository: Repository, location: RepositoryLocation, plan: ExportPlan, point: RestorePoint, control: Control
) -> ExportResult:
    before = _held(repository, socket.gethostname()).get(plan.name, [])
    attempt = holding.hold_if_writable(repository, point, plan.purpose)
    hold = attempt.hold
    with contextlib.ExitStack() as undo:
        if hold is not None:
            undo.callback(holds.release, repository, hold.id)
        undo.callback(exports.forget, plan.name)
        exports.write(Export(plan, hold.id if hold is not None else None))
        held = hold.point if hold is not None and hold.point is not None else point
        manifest = manifests.encode(held).decode(errors="surrogatepass")
        settings = Settings(plan, manifest, handed_on(location))
        pid = launch.start(plan.name, settings.encode(), control)
        undo.pop_all()
    for old in before:  # of a server that is gone, such as before a restart of this host
        holds.release(repository, old.id)
    done = Export(plan, hold.id if hold is not None else None, pid)
    return ExportResult(done, True, (attempt.warning,) if attempt.warning else ())


def _held(repository: Repository, host: str) -> dict[str, list[Hold]]:
    """Return the holds of the exports of a host, by the names of the exports."""
    found: dict[str, list[Hold]] = {}
    for each in holds.listed(repository):
        if each.host == host and each.purpose.startswith(purpose("")):
            found.setdefault(each.purpose[len(purpose("")) :], []).append(each)
    return found


def end(repository: Repository, request: EndRequest, check_only: bool = False) -> list[str]:
    """End exports: first the server, then the hold. Return the names of those that existed.

    The hold of an export is found by its purpose, so it can be ended from any host, and after a restart of the host.
    With ``check_only``, nothing is changed. Raises CbtError.
    """
    host = request.host or socket.gethostname()
    with exports.changing():
        here = {each.plan.name: each.plan for each in listed()} if host == socket.gethostname() else {}
        serving = {
            name: plan
            for name, plan in here.items()
            if request.fits(name, _Served(plan.domain, plan.uuid, plan.restore_point))
        }
        for name, plan in serving.items():
            if plan.repository != repository.id:
                raise Refused(f"The export {name} is of another repository, {plan.location}. Name that one to end it.")
        held = {
            name: found
            for name, found in _held(repository, host).items()
            if request.fits(name, _Served(found[0].point.domain if found[0].point else "", *found[0].key))
        }
        names = sorted({*serving, *held})
        for name in names if not check_only else ():
            _end(repository, name, held.get(name, ()), name in serving)
    return names


def _end(repository: Repository, name: str, held: t.Sequence[Hold], served: bool) -> None:
    if served:
        launch.stop(name)
    for each in held:
        try:
            holds.release(repository, each.id)
        except CbtError as error:
            raise CbtError(
                f"The export {name} has ended here, but its restore point is still held: {str(error).rstrip('.')}. Run"
                " this again."
            ) from error
    if served:
        exports.forget(name)
