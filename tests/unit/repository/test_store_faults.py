"""A store that fails at every single call of a backup: published points stay true, and nothing else is ever named."""

from __future__ import annotations

import pytest
from engine_history import EngineHistory, repaired
from faulty_store import FAULTS, FaultyStore, each_call
from histories import KEYS, use_small_disks
from samples import OTHER_UUID, UUID

from _cbt.errors import RepositoryError
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.format import configuration
from _cbt.repository.sharing import condemned, trash


def begun(keys: str, condemn: bool) -> tuple[EngineHistory, FaultyStore]:
    """A repository with two points and a disk with changes of every kind since; one pack may be on its way out."""
    history = EngineHistory(KEYS[keys])
    store = history.store = FaultyStore()
    store.objects[configuration.NAME] = b""
    for block in range(5):
        history.disk.write(block, block + 1)
    history.backup()
    history.disk.write(1, 20)
    history.backup()
    for block, number in ((0, 0), (1, 2), (2, 3), (5, 30), (6, 1), (7, 31)):
        history.disk.write(block, number)
    if condemn:
        packs = sorted(name for name in store.objects if name.startswith("packs/"))
        for name in packs:
            condemned.condemn(history.repository, name)
    return history, store


@pytest.mark.parametrize("condemn", [False, True], ids=["", "condemned"])
@pytest.mark.parametrize("keys", KEYS)
def test_a_backup_survives_any_fault_of_any_call(keys: str, condemn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_disks(monkeypatch)
    history, store = begun(keys, condemn)
    restore, truth = history.kept(), dict(history.truth)
    seen = set()
    for fault in FAULTS:
        for at, met, outcome, where in each_call(store, fault, restore, history.backup):
            if not met:
                break  # it has fewer calls
            seen.add(met.split()[0])
            newest, published = max(history.truth), {each.id for each in history.fresh().points_of().points}
            assert set(truth) <= published, where
            assert outcome != "done" or newest in published, where
            if fault in ("error", "answer lost", "half") and outcome != "done":
                assert newest not in published, where
            assert history.needed() <= set(store.objects), where
            assert not history.wrong(), where
            if at % 3 == 0:
                repaired(history, where)
        assert at > 20
    assert seen >= {"put", "get", "list", "upload", "write", "commit", "delete", "modified", "protect"}


def test_objects_of_a_withdrawn_point_that_others_came_to_need_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the moment it did and the one it is taken back, compaction may have others name its blocks."""
    use_small_disks(monkeypatch, cut=0)
    history = EngineHistory()
    for block in range(8):
        history.disk.write(block, block + 1)
    history.backup()
    history.disk.write(0, 20)
    history.backup()
    trash.remove(history.fresh(), history.fresh().points_of().points[0])
    history.collect()
    for name in list(history.store.list("hooks")):
        history.store.delete(name)
    put, moved = history.store.put, []

    def answer_lost(name: str, data: bytes, replace: bool = True) -> bool:
        put(name, data, replace)
        if name.startswith(f"points/{OTHER_UUID}/") and name.endswith("manifest.json"):
            monkeypatch.setattr(history.store, "put", put)
            moved.append(
                retention(history.fresh(), RetentionRequest(Rules(last=-1), grace=0, compact_below=100)).compacted
            )
            raise RepositoryError("Cannot write it: the server does not answer.")
        return True

    monkeypatch.setattr(history.store, "put", answer_lost)
    with pytest.raises(RepositoryError, match="does not answer"):
        history.backup(OTHER_UUID)
    assert moved and moved[0].points == 1
    assert {each.uuid for each in history.fresh().points_of().points} == {UUID}
    assert not history.wrong()
