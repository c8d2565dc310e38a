"""A history whose backups and checks are those of the engine, from the lease to the hooks; only the hypervisor is missing."""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Callable

from histories import History
from samples import UUID, point, record
from stepping import Actor, SteppedStore

from _cbt.blocks.extents import BlockRange
from _cbt.control import Control
from _cbt.errors import CbtError
from _cbt.operations.point.new_point import Files, NewPoint, StoringOptions
from _cbt.operations.upkeep.healing import heal
from _cbt.operations.upkeep.retention import RetentionRequest, RetentionResult, retention
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.records import damage
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import leases

FILES = {"domain.xml": b"<domain/>", "inactive.xml": b"<domain type='kvm'/>"}
OPTIONS = StoringOptions(compression="lz4", workers=1)


class EngineHistory(History):
    """As ``History``, its points made as a backup makes them."""

    numbers = 0
    at_mark = b""  # what the disk held when its changes began to be tracked

    def backup(self, uuid: str = UUID) -> RestorePoint:
        """A backup: on the latest point, its changes read, everything beside it done as well."""
        self.numbers += 1
        at = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC) + datetime.timedelta(hours=self.numbers)
        name = f"{at:%Y%m%dT%H%M%SZ}-{self.numbers:08x}"
        self.truth[name] = self.disk.bytes()
        repository = self.fresh()
        with leases.held(repository, "backup") as lease, contextlib.ExitStack() as undo:
            last = next(iter(reversed(repository.points_of(uuid).points)), None)
            base = repository.read_map(last, "vda") if last is not None else None
            damages = damage.read_all(repository)
            if base is not None:
                damages.update(damage.unsound_packs(repository, base.packs))
            again = (
                [BlockRange(run.first, run.count, False) for run in damage.damaged_runs(base, damages)]
                if base is not None
                else []
            )
            if last is None or self.truth[last.id] != self.at_mark:
                self.disk.dirty = set(range(len(self.disk.content)))
            new = NewPoint(lease, (uuid, name), OPTIONS, damages, Control())
            undo.callback(new.unpublish)
            read = new.read(self.disk, "vda", base, again=again)  # type: ignore[arg-type]

            def describe(maps: Files, files: Files) -> RestorePoint:
                disks = (record(size=read.size, map=maps["vda"]),)
                parent = last.id if last is not None else None
                return point(
                    1,
                    disks,
                    id=name,
                    uuid=uuid,
                    created=at.isoformat(timespec="microseconds"),
                    parent=parent,
                    files=files,
                )

            made = new.publish(
                {name: functools.partial(bytes, FILES[name]) for name in FILES},
                describe,
                lambda _target: contextlib.nullcontext(self.disk),
            )  # type: ignore[arg-type,return-value]
            undo.pop_all()
            with contextlib.suppress(CbtError):
                heal(lease, uuid, damages, Control())
            new.record_hooks()
        self.at_mark = self.truth[name]
        self.disk.dirty.clear()
        return made

    def kept(self) -> Callable[[], None]:
        """A function that brings everything back to what it is now, but for the time."""
        objects, times, truth, dirty, mark = (
            dict(self.store.objects),
            dict(self.store.times),
            dict(self.truth),
            set(self.disk.dirty),
            self.at_mark,
        )

        def restore() -> None:
            self.store.objects, self.store.times = dict(objects), dict(times)
            self.truth, self.disk.dirty, self.at_mark = dict(truth), set(dirty), mark

        return restore

    def stepped(self, actor: Actor) -> Repository:
        """The repository as a process opens it that halts before each request."""
        return Repository(SteppedStore(self.store, actor), self.repository.id, self.repository.keys)  # type: ignore[arg-type]

    def collect(self) -> RetentionResult:
        """Reclaim at once what nothing needs, long after every session."""
        self.store.clock += leases.LAPSE * 2 + leases.ASTRAY
        return retention(self.fresh(), RetentionRequest(grace=0.0))

    def wrong(self) -> list[str]:
        """Points that are not exactly what they must be, their files included."""
        repository = self.fresh()
        listing = repository.points_of()
        found = [*listing.damaged, *self.untrue(), *self.damaged()]
        for each in listing.points:
            found += [name for name, file in each.files.items() if repository.get_file(each, file) != FILES[name]]
        return found

    def needed(self) -> set[str]:
        """Names of everything below packs and points that there should be."""
        repository = self.fresh()
        names = set()
        for each in repository.points_of().points:
            names |= {f"{each.folder}/manifest.json", *(f"{each.folder}/{file.name}" for file in each.stored_files)}
            names |= {ref.name for disk in each.disks for ref in repository.read_packs(each, disk)}
        return names


def repaired(history: EngineHistory, where: str) -> None:
    """The next backup goes on, and once all is quiet, there is nothing that no point needs."""
    history.backup()
    history.collect()
    assert not history.wrong(), where
    left = {
        name
        for name in history.store.objects
        if name.startswith(("packs/", "points/", "drafts/", "doomed/", "condemned/"))
    }
    assert left == history.needed(), where
