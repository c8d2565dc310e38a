# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides whether and how to convert an image to make it trackable. Pure."""

from __future__ import annotations

import dataclasses
import os

from ...errors import Refused
from ...hypervisor.other_hosts import OtherHosts
from ...images.image_files import Image
from ...images.marker import Original

AMEND = "amend"  # in place, while the image is unused
CONVERT = "convert"  # to a new image, while the old one is unused
BLOCKCOPY = "blockcopy"  # to a new image, while the guest writes
FINISH = "finish"  # a conversion whose marker is still there although the domain runs on the new image


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """The options of a conversion.

    ``window`` allows a shutdown of a running domain, which may take ``shutdown_timeout`` seconds. ``dest`` is the path
    of the new image; None to choose one. ``others`` is what is known of other hosts that may run the domain.
    """

    method: str = "auto"
    window: bool = False
    dest: str | None = None
    keep_original: bool = False
    scratch_dir: str = "/var/tmp"
    shutdown_timeout: float = 300.0
    others: OtherHosts = OtherHosts()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An image and the facts that decide about its conversion.

    ``target`` and ``domain`` are empty for an image without a domain. ``running`` is whether the domain runs, ``ties``
    what in the domain refers to the image, ``sharers`` the other domains with the same image. ``copying_to`` is the
    path to which a running block job copies it, ``original`` the original that the marker beside it names.
    """

    image: Image
    domain: str = ""
    target: str = ""
    running: bool = False
    device: bool = False
    ties: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()
    copying_to: str | None = None
    original: Original | None = None

    @property
    def name(self) -> str:
        """The name of the image in messages."""
        return f"{self.target} of {self.domain} ({self.image.path})" if self.domain else self.image.path


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One image to convert. ``path`` is the path of the result; amend keeps the path."""

    candidate: Candidate
    method: str
    path: str

    @property
    def text(self) -> str:
        """A description of the conversion for the user."""
        image = self.candidate.image
        kind = f"{image.format} v2" if image.format == "qcow2" else image.format
        if self.method == FINISH and self.candidate.original is not None:
            original = self.candidate.original.path
            return (
                f"{self.candidate.name}: compare the original {original}, which was kept until the domain was seen"
                " running on the copy"
            )
        if self.method == AMEND:
            return f"{self.candidate.name}: {kind} to qcow2 v3 by amend, in place"
        return f"{self.candidate.name}: {kind} to qcow2 v3 by {self.method}, to {self.path}"


def new_path(image: Image) -> str:
    """Return the path of a new image beside the old one."""
    stem, suffix = os.path.splitext(image.path)
    return f"{stem}-v3.qcow2" if suffix == ".qcow2" else f"{stem}.qcow2"


def _method(candidate: Candidate, options: ConversionOptions) -> str:
    live = candidate.running and not options.window
    if options.method == "auto":
        return BLOCKCOPY if live else AMEND if candidate.image.format == "qcow2" else CONVERT
    if live and options.method != BLOCKCOPY:
        raise Refused(
            f"Cannot convert {candidate.name} by {options.method}: the domain is running. Shut it down, allow a window,"
            " or use blockcopy."
        )
    if not live and options.method == BLOCKCOPY:
        raise Refused(
            f"Cannot convert {candidate.name} by blockcopy: it is for a running domain without a window. Use amend or"
            " convert."
        )
    if options.method == AMEND and candidate.image.format != "qcow2":
        raise Refused(
            f"Cannot convert {candidate.name} by amend: it is {candidate.image.format}, and amend is for qcow2 v2. Use"
            " convert."
        )
    return options.method


def _refuse_new_image(candidate: Candidate) -> None:
    """Raise Refused if a new image under another name would lose or break something."""
    image, advice = (
        candidate.image,
        "It can be converted by amend while the domain is off." if candidate.image.format == "qcow2" else "",
    )
    reasons = [
        ("it has internal snapshots, which a new image would not have", image.snapshots),
        ("it is encrypted", image.encrypted),
        ("its data is in an external data file", image.data_file),
        (f"the domain has {' and '.join(candidate.ties)}, which refer to the current image", candidate.ties),
        (
            f"it is also a disk of {', '.join(candidate.sharers)}, which would continue to use the old image",
            candidate.sharers,
        ),
    ]
    for reason, holds in reasons:
        if holds:
            raise Refused(f"Cannot convert {candidate.name} to a new image: {reason}. {advice}".strip())


def plan(candidate: Candidate, options: ConversionOptions) -> Conversion | None:
    """Decide how to convert an image; None if there is nothing to do.

    Raises Refused if the conversion would lose or break something.
    """
    if candidate.image.trackable:
        unfinished = candidate.original is not None and candidate.running
        return Conversion(candidate, FINISH, candidate.image.path) if unfinished else None
    method = _method(candidate, options)
    if method == AMEND:
        return Conversion(candidate, AMEND, candidate.image.path)
    _refuse_new_image(candidate)
    if candidate.device and options.dest is None:
        raise Refused(f"Cannot convert {candidate.name} to a new image: it is a device. Name an image file with dest.")
    path = options.dest or new_path(candidate.image)
    if candidate.copying_to not in (None, path):
        raise Refused(
            f"Cannot convert {candidate.name}: a block job to {candidate.copying_to or 'elsewhere'} runs on it. Wait"
            " for it to end, or end it."
        )
    return Conversion(candidate, method, path)
