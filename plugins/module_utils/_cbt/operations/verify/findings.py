# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The findings of a verification: shared by points, and recorded for backups to heal."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import functools
import typing as t

from ...errors import RepositoryError
from ...repository.format import names
from ...repository.format.maps import Run
from ...repository.format.packs import PackRef
from ...repository.records import damage, verified
from ...repository.records.damage import PackDamage
from ...repository.repository import Listing, Repository
from .verdicts import PointVerdict

_NOTED = 64 << 20  # blocks whose state is remembered; one byte each
_MOST_UNREADABLE = 1 << 18  # packs that are remembered


class Findings:
    """The known state of packs and blocks; each block is read once for all points.

    Only the main thread writes.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._sound: dict[bytes, bytearray] = {}
        self._noted = 0
        self._readable: set[bytes] = set()
        self._unreadable: dict[bytes, str] = {}
        self._hurt: dict[bytes, dict[int, str]] = collections.defaultdict(dict)
        self.recorded = damage.read_all(repository)

    def sound_blocks(self, ref: PackRef) -> bytearray:
        """Return one byte per block of a pack: 1 if the block was read and is sound.

        If too many blocks are remembered, all are forgotten and read again.
        """
        known = self._sound.get(ref.id)
        if known is None:
            if self._noted > _NOTED:
                self._sound.clear()
                self._noted = 0
            known = self._sound[ref.id] = bytearray()
        if len(known) < ref.blocks:  # maps can disagree about the size of a pack
            self._noted += ref.blocks - len(known)
            known.extend(bytes(ref.blocks - len(known)))
        return known

    def note_readable(self, ref: PackRef) -> None:
        """Note that the directory of a pack is sound."""
        self._readable.add(ref.id)

    def note_unreadable(self, ref: PackRef, cause: str) -> None:
        """Note that a pack is missing, or that its directory is damaged."""
        if len(self._unreadable) < _MOST_UNREADABLE:  # packs beyond this limit are found again
            self._unreadable[ref.id] = cause

    def note_blocks(self, run: Run, hurt: t.Mapping[int, str]) -> None:
        """Note that the blocks of a run were read; ``hurt`` maps damaged ordinals to causes."""
        self._readable.add(run.pack.id)
        states = self.sound_blocks(run.pack)
        for ordinal in range(run.ordinal, run.ordinal + run.count):
            states[ordinal] = ordinal not in hurt
        self._hurt[run.pack.id].update(hurt)

    def suspect(self, run: Run) -> bool:
        """Return True if a block of a run is recorded as damaged."""
        recorded = self.recorded.get(run.pack.id)
        return recorded is not None and any(
            recorded.covers(ordinal) for ordinal in range(run.ordinal, run.ordinal + run.count)
        )

    def _state(self, pack: bytes) -> PackDamage | None:
        """Return the damage to record for a pack; None for no record."""
        if pack in self._unreadable:
            return PackDamage(None, self._unreadable[pack])
        before = self.recorded.get(pack)
        if before is not None and before.blocks is None and pack not in self._readable:
            return before
        hurt = self._hurt.get(pack, {})
        sound = self._sound.get(pack, b"")
        blocks = {
            ordinal
            for ordinal in (before.blocks or () if before is not None else ())
            if not (ordinal < len(sound) and sound[ordinal])
        }
        blocks.update(hurt)
        if not blocks:
            return None
        return PackDamage(
            frozenset(blocks), before.cause if before is not None and before.blocks else next(iter(hurt.values()))
        )

    def store(self) -> None:
        """Record damaged packs and delete the records of packs that are sound again.

        Raises RepositoryError if the store fails.
        """
        for pack in {*self._unreadable, *self._hurt, *(self._readable & self.recorded.keys())}:
            if self._state(pack) == self.recorded.get(pack):
                continue
            self._look_again(pack)
            state = self._state(pack)
            if state == self.recorded.get(pack):
                continue
            if state is None:
                self._repository.discard(names.damage_of(pack))
                del self.recorded[pack]
            else:
                self._repository.put_object(names.damage_of(pack), damage.encode(state))
                self.recorded[pack] = state

    def _look_again(self, pack: bytes) -> None:
        """Read the record of a pack again: another verification may have changed it."""
        recorded = damage.read(self._repository, pack)
        if recorded is None:
            self.recorded.pop(pack, None)
        else:
            self.recorded[pack] = recorded


@dataclasses.dataclass
class Recorder:
    """Records findings in the repository, if ``wanted``.

    At the first failure, ``warn`` is called with the reason, and nothing more is recorded.
    """

    repository: Repository
    findings: Findings
    level: str
    percent: int
    warn: t.Callable[[str], None]
    wanted: bool

    def _stored(self, store: t.Callable[[], None]) -> None:
        if not self.wanted:
            return
        try:
            store()
        except RepositoryError as error:
            self.wanted = False
            self.warn(f"The findings were not recorded in the repository: {error}")

    def ended(self) -> None:
        """Record the findings of a verification that stopped, if the repository is still there."""

        def store() -> None:
            self.repository.check_there()
            self.findings.store()

        self._stored(store)

    def point(self, verdict: PointVerdict) -> None:
        """Record the damage found so far and the verdict on a point."""
        point = verdict.point
        if point is None:
            return
        own = next((each.cause for each in verdict.damage if each.own), None)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        found = verified.Verified(now, self.level, self.percent, verdict.status, own)
        self._stored(self.findings.store)
        self._stored(lambda: verified.record(self.repository, point, found))

    def end(self, listing: Listing, read_slices: t.Mapping[str, int], selection: str, slices: int) -> None:
        """Record which slices were read, forget deleted points, and warn of foreign files."""
        for uuid, done in read_slices.items():
            self._stored(functools.partial(verified.slice_done, self.repository, uuid, selection, slices, done))
        manifests = {*listing.damaged, *(names.manifest(point.uuid, point.id) for point in listing.points)}
        self._stored(lambda: verified.forget_gone(self.repository, manifests))
        for sentence in self.repository.foreign_words():
            self.warn(sentence)
