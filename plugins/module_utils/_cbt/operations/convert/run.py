# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converts images at rest and under a running guest, and removes originals."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ...control import Control
from ...errors import HypervisorError, Refused, size_text
from ...files import delete
from ...hypervisor import block_copy, checkpoints, definition, free_space
from ...hypervisor.connection import Domain
from ...hypervisor.domain import read_domain
from ...hypervisor.domain_xml.disks import parse_disks
from ...images import image_files, locks, marker, qemu_img
from ...images.marker import Original
from .plan import AMEND, FINISH, Conversion, ConversionOptions
from .proof import prove

_BITMAP = "cbt-conversion"


class ImageRun:
    """The conversions of one domain, or of one image without a domain."""

    def __init__(self, domain: Domain | None, options: ConversionOptions, control: Control) -> None:
        self.domain = domain
        self.options = options
        self.control = control
        self.notes: list[str] = []

    @property
    def of_domain(self) -> Domain:
        """The domain whose disks are converted."""
        return t.cast(Domain, self.domain)

    # New images.

    def check_room(self, conversions: t.Sequence[Conversion]) -> None:
        """Raise Refused if the new images do not fit, or if their paths are taken.

        Also raises Refused if a folder is missing, or if the format of a backing file would have to be guessed.
        """
        wanted: dict[int, tuple[str, int]] = {}
        for each in conversions:
            if each.method != FINISH and each.candidate.image.backing is not None:
                qemu_img.require_formats(each.candidate.image.path, each.candidate.image.format)
            if each.method in (AMEND, FINISH) or each.candidate.copying_to is not None:
                continue
            folder = os.path.dirname(each.path)
            if not os.path.isdir(folder):
                raise Refused(
                    f"Cannot convert {each.candidate.name} to {each.path}: there is no folder {folder}. Create it"
                    " first."
                )
            self._begun_before(each)
            device = os.stat(folder).st_dev
            wanted[device] = folder, wanted.get(device, (folder, 0))[1] + image_files.needed(each.candidate.image)
        for folder, size in wanted.values():
            usage = free_space.usage_of(folder)
            if dataclasses.replace(usage, free=usage.free - size).short:
                raise Refused(
                    f"Cannot convert to {folder}: {size_text(size)} are needed beside the original and"
                    f" {size_text(usage.free)} are free, of which some must be kept. Free space, or choose another"
                    " place with dest."
                )

    def _begun_before(self, conversion: Conversion) -> bool:
        """Whether a killed run began the new image.

        Raises Refused if a file of another origin has its path.
        """
        marked = marker.read(conversion.path)
        if marked is not None and marked.path == conversion.candidate.image.path:
            return True
        if os.path.lexists(conversion.path) or marker.there(conversion.path):
            raise Refused(
                f"Cannot convert {conversion.candidate.name} to {conversion.path}: it exists already. Remove it, or"
                " choose another place with dest."
            )
        return False

    def _begin_image(self, conversion: Conversion) -> None:
        """Create the marker of a new image; first delete what a killed run left."""
        if self._begun_before(conversion):
            self._drop_image(conversion)  # with its marker: that of an older version does not record the format
        image = conversion.candidate.image
        marker.make(conversion.path, Original(image.path, image.format))

    def _drop_image(self, conversion: Conversion) -> None:
        delete(conversion.path)
        marker.remove(conversion.path)

    def _watch(self, path: str) -> t.Callable[[], None]:
        def watch() -> None:
            self.control.check()
            if free_space.usage_of(os.path.dirname(path)).short:
                raise HypervisorError(
                    f"Ended the conversion to {path}: its file system runs out of space. The original was not touched."
                    " Free space there."
                )

        return watch

    def _copy(self, conversion: Conversion) -> None:
        """Create the new image of an unused image, and compare it."""
        watch = self._watch(conversion.path)
        watch()  # a small image is converted before the first look
        self._begin_image(conversion)
        try:
            image_files.convert(conversion.candidate.image, conversion.path, watch)
            image_files.compare(conversion.candidate.image, conversion.path, watch)
            # Another process may have opened the image during the copy.
            locks.require_free(conversion.candidate.image.path, f"use {conversion.path} as the copy")
        except BaseException:
            self._drop_image(conversion)
            raise

    # One image after another.

    def at_rest(self, conversion: Conversion, undo: contextlib.ExitStack) -> None:
        """Convert an unused image; add the steps that undo it to ``undo``."""
        path, target = conversion.candidate.image.path, conversion.candidate.target
        if conversion.method == AMEND:
            image_files.set_compat(path, "1.1")
            undo.callback(image_files.set_compat, path, "0.10")
            image_files.check(path)
            return
        self._copy(conversion)
        undo.callback(self._drop_image, conversion)
        if self.domain is None:
            return
        before = definition.disk_xml(self.domain, target)
        definition.define_disk(self.domain, definition.with_source(before, conversion.path))
        undo.callback(definition.define_disk, self.domain, before)
        if self.domain.api.isActive():
            raise HypervisorError(
                f"{self.domain.name} was started while its image was converted; it runs on the original. Run it again."
            )

    def live(self, conversion: Conversion) -> None:
        """Convert the image of a running domain while the guest writes."""
        domain, candidate = self.of_domain, conversion.candidate
        watch = self._watch(conversion.path)
        if candidate.copying_to is None:
            self._begin_image(conversion)
        try:
            if candidate.copying_to is None:
                image_files.create_like(candidate.image, conversion.path)
                block_copy.begin(domain, candidate.target, conversion.path, shallow=candidate.image.backing is not None)
            block_copy.wait(domain, candidate.target, watch)
            block_copy.record_writes(domain, candidate.target, _BITMAP)
            block_copy.pivot(domain, candidate.target)
        except BaseException:
            block_copy.abort(domain, candidate.target)
            if not self._uses(candidate.target, conversion.path):
                self._drop_image(conversion)
            raise
        self._define_as_running(candidate.target, conversion.path)

    def _uses(self, target: str, path: str) -> bool:
        """Whether the running domain uses this image for this disk."""
        facts = read_domain(self.of_domain)
        return facts.active and any(disk.target == target and disk.source == path for disk in facts.disks)

    def _define_as_running(self, target: str, path: str) -> None:
        # libvirt updates the definition itself if that named the same image as the running domain.
        domain = self.of_domain
        if not self._uses(target, path):
            raise HypervisorError(
                f"{target} of {domain.name} does not use {path} after the change to it; the original is kept. See"
                " libvirt's log."
            )
        defined = {disk.target: disk.source for disk in parse_disks(read_domain(domain).inactive_xml)}
        if defined.get(target, path) != path:
            definition.define_disk(domain, definition.with_source(definition.disk_xml(domain, target), path))

    # The removal of the original.

    def finish(self, target: str, path: str, original: Original) -> str | None:
        """Prove the disk of a running domain, and delete the original unless it must stay.

        Returns the path of the original if it is kept. Raises HypervisorError if the proof fails.
        """
        proven = not os.path.exists(original.path) or self._prove_live(target, original)
        kept = original.path if os.path.exists(original.path) and (not proven or self._stays(original.path)) else None
        if kept is None:
            delete(original.path)
        marker.remove(path)
        return kept

    def _prove_live(self, target: str, original: Original) -> bool:
        """Prove a conversion under a running guest, which left a bitmap.

        Other conversions were compared before the domain used them. Returns False if the format of the original is
        unknown, so that it cannot be read. Raises HypervisorError if the proof fails.
        """
        domain = self.of_domain
        disk = next(each for each in read_domain(domain).disks if each.target == target)
        if disk.bitmap(_BITMAP) is None:
            return True
        fmt = original.format
        if fmt is None and not qemu_img.has_qcow2_header(original.path):
            fmt = "raw"  # only RAW and qcow2 images are converted
        if fmt is None:
            self.notes.append(
                f"The original {original.path} was kept without a comparison: an older version of kvm.cbt began the"
                " conversion and did not record the format of the original. Remove it once you have verified that the"
                " domain works."
            )
        else:
            prove(
                domain,
                target,
                image_files.describe(original.path, fmt),
                _BITMAP,
                self.options.scratch_dir,
                self.control,
            )
        checkpoints.remove(domain, _BITMAP)
        return fmt is not None

    def _stays(self, original: str) -> bool:
        if self.options.keep_original or not os.path.isfile(original):
            return True
        sources = [path for _uuid, path in definition.defined_sources(self.of_domain.session)]
        users = [path for path in sources if os.path.realpath(path) == os.path.realpath(original)]
        users += image_files.dependents(sources, original)
        if not users and locks.in_use(original):
            users = ["a running process"]
        if users:
            self.notes.append(
                f"The original {original} was kept because it is used by {', '.join(sorted(set(users)))}."
            )
        return bool(users)
