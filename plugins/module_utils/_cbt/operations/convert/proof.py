# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proves that the copy of a disk equals its original while the guest writes to it.

During the copy, QEMU records in a bitmap of the new image which blocks the guest writes. All other blocks must equal
those of the old image, which is no longer in use. The new image is read from a frozen view, so the guest continues to
run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ...blocks.extents import Extent, intersect
from ...blocks.nbd import MAX_REQUEST, Source
from ...control import Control
from ...errors import HypervisorError
from ...hypervisor import backup_job, checkpoints, free_space, offline_export, scratch
from ...hypervisor.connection import Domain
from ...hypervisor.domain import read_domain
from ...images.image_files import Image


def unmarked(marked: t.Iterable[Extent], size: int) -> t.Iterator[Extent]:
    """Yield the parts of a disk outside of ordered extents. Pure."""
    offset = 0
    for extent in marked:
        if extent.offset > offset:
            yield Extent(offset, extent.offset - offset, False)
        offset = extent.end
    if size > offset:
        yield Extent(offset, size - offset, False)


def _to_read(old: Source, new: Source) -> t.Iterator[Extent]:
    """Yield the ranges that are not marked and do not read as zero in both images."""

    def within(zero: bool) -> t.Iterator[Extent]:
        unwritten = unmarked(new.marked(0, new.size), old.size)
        return (each for each in intersect(unwritten, old.allocation()) if each.zero == zero)

    yield from within(zero=False)
    yield from (each for each in intersect(within(zero=True), new.allocation()) if not each.zero)


def first_difference(old: Source, new: Source, control: Control) -> int | None:
    """Return the offset of a piece that differs and is not marked; None without one."""
    with old.connect() as one, new.connect() as other:
        for extent in _to_read(old, new):
            for offset in range(extent.offset, extent.end, MAX_REQUEST):
                control.check()
                length = min(MAX_REQUEST, extent.end - offset)
                if one.read(offset, length) != other.read(offset, length):
                    return offset
    return None


def prove(domain: Domain, target: str, original: Image, bitmap: str, scratch_dir: str, control: Control) -> None:
    """Raise HypervisorError unless the disk equals ``original`` outside of ``bitmap``.

    The bitmap stays.
    """
    facts = read_domain(domain)
    disk = next(each for each in facts.disks if each.target == target)
    checkpoints.redefine(domain, facts, bitmap, [target])
    was = dataclasses.replace(
        facts, disks=(dataclasses.replace(disk, type="file", source=original.path, format=original.format, backing=()),)
    )
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(scratch.workspace(domain, facts, scratch_dir))
        aside = os.path.join(work.folder, "original")
        os.mkdir(aside, 0o700)
        (before,) = stack.enter_context(offline_export.image_exports(was, {target: None}, aside))
        begin = stack.enter_context(backup_job.backup_job(domain, facts, {target: bitmap}, work.folder))
        stack.enter_context(free_space.guarded([work.watched], control, lambda: backup_job.end(domain)))
        (now,) = begin()
        old = stack.enter_context(Source(before))
        new = stack.enter_context(Source(now))
        different = first_difference(old, new, control) if old.size == new.size else min(old.size, new.size)
    if different is not None:
        raise HypervisorError(
            f"{target} of {domain.name} differs from {original.path}, which it was copied from, at offset {different},"
            " though nothing was written there. The domain runs on the copy; the original is kept. Examine both before"
            " you delete one of them."
        )
