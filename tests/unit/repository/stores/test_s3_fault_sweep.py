"""A server of S3 that misbehaves at every single request of a backup and of retention, seen through the real SDK.

Published points stay true, nothing that is not published is ever named, and what one lost request or answer does is mended unseen.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("boto3")

from engine_history import EngineHistory, repaired
from faulty_store import each_call
from histories import use_small_disks
from s3_server import FAULTS, S3Server, alone, serving, store_on
from samples import UUID

from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.repository import Repository
from _cbt.repository.stores.base import Store

pytestmark = pytest.mark.slow


class RemoteHistory(EngineHistory):
    """Its sessions reach the store through a server; a test looks at the store itself."""

    remote: Store | None = None

    def fresh(self) -> Repository:
        self.repository = Repository(self.remote or self.store, "00" * 16)  # type: ignore[arg-type]
        return self.repository

    def through(self, store: Store, work: str) -> None:
        """Do something by way of a store."""
        self.remote = store
        try:
            getattr(self, work)()
        finally:
            self.remote = None

    def retire(self) -> None:
        """Remove all points but the latest, and reclaim what was theirs."""
        self.store.clock += 100_000
        retention(self.fresh(), RetentionRequest(Rules(last=1), grace=3600.0, confirm_shrink=True))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RemoteHistory, S3Server, Store]]:
    """Two points, one removed before them whose blocks are on their way out, and a disk that has changed since, in every way."""
    alone(monkeypatch)
    use_small_disks(monkeypatch)
    history = RemoteHistory()
    for turn in range(3):
        for block in range(5):
            history.disk.write(block, 10 * turn + block + 1)
        history.backup()
        if turn == 0:
            history.store.delete(f"points/{UUID}/{max(history.truth)}/manifest.json")
            del history.truth[max(history.truth)]
    history.store.clock += 100_000
    retention(history.fresh(), RetentionRequest(grace=3600.0, confirm_shrink=True))
    for block, number in ((0, 0), (1, 2), (2, 3), (5, 30), (6, 1), (7, 31)):
        history.disk.write(block, number)
    server = S3Server(history.store)
    with serving(server) as endpoint:
        yield history, server, store_on(endpoint)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", ["backup", "retire"])
def test_work_survives_any_fault_of_any_request(
    work: str, fault: str, scene: tuple[RemoteHistory, S3Server, Store]
) -> None:
    history, server, store = scene
    memory = history.store
    back, clock, truth, methods = history.kept(), memory.clock, dict(history.truth), set()

    def restore() -> None:
        back()
        memory.clock = clock

    for at, met, outcome, where in each_call(server, fault, restore, lambda: history.through(store, work)):
        assert "SECRET" not in outcome
        if not met:
            break  # it has fewer requests
        methods.add(met.split()[0])
        published = {each.id for each in history.fresh().points_of().points}
        if work == "backup":
            assert set(truth) <= published, where
            assert outcome != "done" or max(history.truth) in published, where
            assert outcome == "done" or fault == "gone" or max(history.truth) not in published, where
        else:
            assert max(truth) in published, where
        assert outcome == "done" or fault in ("refused", "gone"), where
        assert history.needed() <= set(memory.objects), where
        assert not history.wrong(), where
        if at % 5 == 0:
            repaired(history, where)
    assert at > 20
    assert methods == {"GET", "HEAD", "PUT", "DELETE"}
