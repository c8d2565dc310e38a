# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converts images that cannot be tracked to qcow2 v3.

The original is kept, except by amend, until the new image is compared with it and the domain is seen running on
the new image. Until then the marker, a link beside the new image, names the original: a later run continues after a
killed one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import typing as t

from ...control import Control
from ...errors import CbtError, Refused
from ...hypervisor import backup_job, block_copy, definition
from ...hypervisor.connection import Domain, Session, no_wait
from ...hypervisor.domain import DomainFacts, read_domain, require_files_here
from ...hypervisor.domain_xml import disk_kinds
from ...hypervisor.domain_xml.disks import Disk, Selection
from ...hypervisor.other_hosts import host_name, withheld
from ...images import image_files, locks, marker
from ...images.image_files import Image
from ...images.marker import Original
from .plan import AMEND, BLOCKCOPY, CONVERT, FINISH, Candidate, Conversion, ConversionOptions, plan
from .run import ImageRun


@dataclasses.dataclass(frozen=True)
class Converted:
    """An image that was converted, or would be in check mode.

    ``original`` is the path of the original that is kept. It is None if the original was deleted or changed in place,
    or if the conversion of a domain's disk is only planned.
    """

    target: str | None
    path: str
    method: str
    format: str
    compat: str | None
    original: str | None
    text: str


@dataclasses.dataclass(frozen=True)
class ConversionResult:
    """The images that were converted, or would be in check mode.

    ``left`` are disks that cannot be converted, with the reason. ``notes`` explain why an original was kept.
    """

    images: tuple[Converted, ...]
    left: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def _candidates(
    domain: Domain, facts: DomainFacts, targets: t.Sequence[str] | None
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the disks to consider, and by target why the others cannot be converted."""
    found: list[Candidate] = []
    left: dict[str, str] = {}
    session = domain.session
    ties, sources = tuple(definition.obstacles(domain)), definition.defined_sources(session)
    for disk in facts.disks:
        if targets is not None and disk.target not in targets:
            continue
        path = definition.disk_path(session, disk) or ""
        reason = _inconvertible(disk, path)
        if reason is not None:
            left[disk.target] = reason
            continue
        found.append(_candidate(facts, disk, path, ties, _users(session, path, sources, facts.uuid)))
    return found, left


def _inconvertible(disk: Disk, path: str) -> str | None:
    if disk.why_unreadable is not None:
        return disk.why_unreadable
    if disk.format not in ("raw", "qcow2"):
        return f"{disk.target} is a {disk.format} image; RAW and qcow2 are converted. Use qemu-img convert."
    if disk.readonly:
        return f"{disk.target} is read-only."
    if disk.layers:
        return f"{disk.target} {disk_kinds.LAYERS[disk.layers[0]]}, which a converted image is not."
    if not path:
        return f"{disk.target} is a {disk.type} disk, not an image file of this host."
    return None if os.path.exists(path) else f"{disk.target} has no image at {path}."


def _users(session: Session, path: str, sources: t.Iterable[tuple[str, str]], but: str = "") -> tuple[str, ...]:
    """Return the names of the domains with this image as a disk, except UUID ``but``."""
    uuids = {uuid for uuid, source in sources if os.path.realpath(source) == os.path.realpath(path)} - {but}
    return tuple(sorted(session.domain(uuid).name for uuid in uuids))


def _candidate(facts: DomainFacts, disk: Disk, path: str, ties: tuple[str, ...], sharers: tuple[str, ...]) -> Candidate:
    copying = block_copy.mirror(facts.xml, disk.target) if facts.active else None
    return Candidate(
        image=image_files.describe(path, disk.format),
        domain=facts.name,
        target=disk.target,
        running=facts.active,
        device=not os.path.isfile(path),
        ties=ties,
        sharers=sharers,
        copying_to=None if copying is None else copying.path or "",
        original=marker.read(path),
    )


def _converted(conversion: Conversion, original: str | None) -> Converted:
    image, target = conversion.candidate.image, conversion.candidate.target or None
    return Converted(target, conversion.path, conversion.method, image.format, image.compat, original, conversion.text)


def _carry_out(run: ImageRun, facts: DomainFacts, conversions: t.Sequence[Conversion]) -> list[Converted]:
    domain = run.of_domain
    done: list[Converted] = []
    at_rest = [each for each in conversions if each.method in (AMEND, CONVERT)]
    window = bool(at_rest) and facts.active
    if window:
        definition.shut_down(domain, run.options.shutdown_timeout, run.control.check)
    with contextlib.ExitStack() as undo:
        if window:
            undo.callback(definition.start, domain)
        for each in at_rest:
            run.control.check()
            run.at_rest(each, undo)
        if window:
            undo.callback(definition.stop, domain)
            definition.start(domain)
        undo.pop_all()
    for each in conversions:
        if each.method == BLOCKCOPY:
            run.live(each)
        done.append(_converted(each, _original_left(run, each, facts.active)))
    return done


def _original_left(run: ImageRun, conversion: Conversion, active: bool) -> str | None:
    """Return the path of the original; None if it was deleted or changed in place.

    Finishes the conversion first if the domain runs.
    """
    image = conversion.candidate.image
    if conversion.method == AMEND:
        return None
    original = conversion.candidate.original if conversion.method == FINISH else None
    original = original or Original(image.path, image.format)
    if active:
        return run.finish(conversion.candidate.target, conversion.path, original)
    if run.options.keep_original:
        marker.remove(conversion.path)
    return original.path


def convert_disks(
    session: Session,
    name: str,
    targets: t.Sequence[str] | None,
    options: ConversionOptions,
    control: Control | None = None,
    check_only: bool = False,
) -> ConversionResult:
    """Convert the disks of a domain, or only ``targets``, to qcow2 v3.

    Raises a CbtError. Steps before the domain runs on a new image are then undone. If a check or the proof fails later,
    the domain stays on the new image, and the original is kept.
    """
    domain = session.domain(name)
    run = ImageRun(domain, options, control or Control())
    with backup_job.domain_lock(domain.uuid, domain.name, session.wait):
        selection = Selection(None if targets is None else tuple(targets))
        facts = withheld(read_domain(domain), options.others, host_name(session), selection=selection)
        require_files_here(facts, "convert images")
        unknown = sorted(set(targets or ()) - {disk.target for disk in facts.disks})
        if unknown:
            raise Refused(
                f"{facts.name} has no disk {', '.join(unknown)}; it has"
                f" {', '.join(disk.target for disk in facts.disks)}."
            )
        candidates, left = _candidates(domain, facts, targets)
        if targets is not None and left:
            raise Refused(f"Cannot convert the disks of {facts.name}: {' '.join(left.values())}")
        conversions = list(filter(None, (plan(each, options) for each in candidates)))
        _refuse(facts, conversions, options)
        run.check_room(conversions)
        if check_only:
            done = [_converted(each, None) for each in conversions]
        else:
            done = _carry_out(run, facts, conversions)
    notes = dict.fromkeys(disk.withheld for disk in facts.disks if disk.withheld)
    return ConversionResult(tuple(done), tuple(left.items()), (*run.notes, *notes))


def _refuse(facts: DomainFacts, conversions: t.Sequence[Conversion], options: ConversionOptions) -> None:
    if conversions and facts.job is not None:
        raise Refused(
            f"Cannot convert the disks of {facts.name}: {facts.job_text} is running on it. Wait for it to end."
        )
    new = [each for each in conversions if each.method in (CONVERT, BLOCKCOPY)]
    if len(new) > 1 and options.dest is not None:
        raise Refused(f"dest names one image, but {len(new)} disks of {facts.name} would be converted. Set disk.")
    if (
        facts.active
        and options.window
        and any(each.method in (AMEND, CONVERT) for each in conversions)
        and facts.state != "running"
    ):
        raise Refused(f"Cannot shut {facts.name} down for a window: it is {facts.state}.")


def convert_image(
    session: Session | None,
    path: str,
    fmt: str,
    options: ConversionOptions,
    control: Control | None = None,
    check_only: bool = False,
) -> ConversionResult:
    """Convert an image file, given by its path, to qcow2 v3. Raises a CbtError.

    Without amend, a new image is created, by default beside the original, and the original stays.
    """
    run = ImageRun(None, options, control or Control())
    with backup_job.domain_lock(
        hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32], path, session.wait if session else no_wait
    ):
        image = image_files.describe(path, fmt)
        users = _users(session, path, definition.defined_sources(session)) if session is not None else ()
        conversion = plan(Candidate(image, device=not os.path.isfile(path), sharers=users), options)
        if conversion is None or (conversion.method == CONVERT and _is_there(image, conversion.path, run)):
            return ConversionResult(())
        locks.require_free(path, f"convert {path}")
        run.check_room([conversion])
        original = None if conversion.method == AMEND else path
        if not check_only:
            with contextlib.ExitStack() as undo:
                run.at_rest(conversion, undo)
                undo.pop_all()
            marker.remove(conversion.path)
    return ConversionResult((_converted(conversion, original),))


def _is_there(image: Image, path: str, run: ImageRun) -> bool:
    """Whether an earlier run completed the new image."""
    if not os.path.exists(path) or marker.there(path):
        return False
    try:
        made = image_files.describe(path, "qcow2")
        image_files.compare(image, path, run.control.check)
    except CbtError:
        run.control.check()
        return False
    return made.trackable
