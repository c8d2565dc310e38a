# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a writer finds to be lost before it publishes, whenever a collector that did not see its draft goes on."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Iterator

import pytest
from samples import encoded, point, record
from stepping import OneAfterAnother
from stores_for_tests import MemoryStore

from _cbt.grid import BLOCK_SIZE
from _cbt.repository.format import names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import condemned, publishing

COLLECTOR = "1" * 16


class MeetingStore(MemoryStore):
    """Deletes objects before the request with a given number, as another session does."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted_before: dict[str, int] = {}
        self.requests = 0

    def meet(self) -> None:
        """Count a request."""
        for name, number in self.deleted_before.items():
            if number == self.requests:
                self.objects.pop(name, None)
        self.requests += 1

    def get(self, name: str, most: int | None = None) -> bytes:
        self.meet()
        return super().get(name, most)

    def list(self, prefix: str) -> Iterator[str]:
        self.meet()
        return super().list(prefix)

    def size(self, name: str) -> int:
        self.meet()
        return super().size(name)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
    return Repository(MeetingStore(), "0" * 32)


def _stored(repository: Repository) -> tuple[RestorePoint, str]:
    """A point that is not published, and the name of its pack."""
    writer, builder = repository.writer(), MapBuilder(BLOCK_SIZE)
    builder.put(0, 1, *writer.append([encoded(b"x" * BLOCK_SIZE, "lz4")]))
    written = writer.finish()
    files = repository.put_files(point(1).folder, {"vda.map": builder.finish(written).encode()})
    (ref,) = written.values()
    return point(1, (record(size=BLOCK_SIZE, map=files["vda.map"]),)), ref.name


def test_what_a_collector_deletes_between_any_two_requests_is_lost(repository: Repository) -> None:
    """It deletes a pack, then its announcement, then its list: a writer that looks in another order may see none of the three."""
    store = repository.store
    assert isinstance(store, MeetingStore)
    made, pack = _stored(repository)
    condemned.condemn(repository, pack)
    (doomed,) = condemned.list_for_deletion(repository, COLLECTOR, [pack])
    whole, store.requests = dict(store.objects), 0
    assert publishing.missing(repository, made) == {pack}
    requests = store.requests
    assert requests >= 4
    for moments in itertools.combinations_with_replacement(range(requests + 1), 3):
        store.objects, store.requests = dict(whole), 0
        store.deleted_before = dict(zip((pack, names.announcement(pack), doomed), moments))
        assert publishing.missing(repository, made) == {pack}, moments


@pytest.mark.parametrize("harm", ["cut off", "prolonged", "gone"])
def test_a_pack_of_another_size_is_lost(repository: Repository, harm: str) -> None:
    store = repository.store
    assert isinstance(store, MeetingStore)
    made, pack = _stored(repository)
    assert publishing.missing(repository, made) == set()
    store.objects[pack] = store.objects[pack][:-1] if harm == "cut off" else store.objects[pack] + b"\0"
    if harm == "gone":
        del store.objects[pack]
    assert publishing.missing(repository, made) == {pack}
