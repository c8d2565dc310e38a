"""A server of S3 that misbehaves at every single request of a backup and of retention, seen through the real SDK.

Published points stay true, nothing that is not published is ever named, and what one lost request or answer does is mended unseen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import histories
import pytest

pytest.importorskip("boto3")

from engine_history import EngineHistory
from s3_server import FAULTS, S3Server, serving
from samples import UUID

from _cbt.errors import CbtError
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.retention import RetentionRequest, retention
from _cbt.repository.places import Place, S3Options, store_at
from _cbt.repository.repository import Repository
from _cbt.repository.retention_rules import Rules
from _cbt.repository.stores import Store


class RemoteHistory(EngineHistory):
    """Its sessions reach the store through a server; a test looks at the store itself."""

    remote: Store | None = None

    def fresh(self) -> Repository:
        self.repository = Repository(self.remote or self.store, "00" * 16)  # type: ignore[arg-type]
        return self.repository

    def retire(self) -> None:
        """Remove all points but the latest, and reclaim what was theirs."""
        self.store.clock += 100_000
        retention(self.fresh(), RetentionRequest(Rules(last=1), grace=3600.0, confirm_shrink=True))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RemoteHistory, S3Server, Store]]:
    """Two points, one removed before them whose blocks are on their way out, and a disk that has changed since, in every way."""
    for name in ("AWS_PROFILE", "AWS_CA_BUNDLE", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the pauses between attempts
    monkeypatch.setattr(histories, "BLOCKS", 8)
    monkeypatch.setattr(histories.Disk, "size", 8 * BLOCK_SIZE - 512)
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
    with serving(history.store) as server:
        yield history, server, store_at(Place("s3://bucket/p", S3Options(endpoint_url=server.endpoint, access_key="KEY", secret_key="SECRET")))


def run(history: RemoteHistory, store: Store, work: str) -> str:
    """How it ended."""
    history.remote = store
    try:
        getattr(history, work)()
    except CbtError as error:
        assert "SECRET" not in str(error)
        assert str(error).endswith("."), "it is no sentence"
        return str(error)
    finally:
        history.remote = None
    return "done"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", ["backup", "retire"])
def test_whatever_request_goes_wrong_in_whatever_way(work: str, fault: str, scene: tuple[RemoteHistory, S3Server, Store]) -> None:
    history, server, store = scene
    memory = history.store
    objects, times, clock, truth = dict(memory.objects), dict(memory.times), memory.clock, dict(history.truth)
    dirty, mark = set(history.disk.dirty), history.at_mark
    at, methods = 0, set()
    while True:
        at += 1
        memory.objects, memory.times, memory.clock = dict(objects), dict(times), clock
        history.truth, history.disk.dirty, history.at_mark = dict(truth), set(dirty), mark
        server.arm(fault, at)
        outcome = run(history, store, work)
        met = server.met
        server.arm("", -1)
        if not met:
            break  # it has fewer requests
        methods.add(met.split()[0])
        where = f"{fault} at request {at} ({met}): {outcome}"
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
            history.backup()
            history.collect()
            assert not history.wrong(), where
            left = {name for name in memory.objects if name.startswith(("packs/", "points/", "drafts/", "doomed/", "condemned/"))}
            assert left == history.needed(), where
    assert at > 20
    assert methods == {"GET", "HEAD", "PUT", "DELETE"}
