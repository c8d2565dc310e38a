"""Everything but packs, maps, configuration files and manifests may be lost: it is made again, and nothing else suffers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from engine_history import EngineHistory
from histories import KEYS, use_small_disks
from samples import UUID

from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.format import manifests, names
from _cbt.repository.records import damage
from _cbt.repository.records.damage import PackDamage
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import condemned, removals, trash
from _cbt.repository.sharing.leases import Lease

FOLDERS = (
    "hooks",
    "leases",
    "condemned",
    "doomed",
    "drafts",
    "trash",
    "removed",
    "damaged",
    "verified",
    "collected.json",
)


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    """Three points, one more in the trash, and everything else there can be."""
    use_small_disks(monkeypatch)
    made = EngineHistory(KEYS[request.param])
    for turn in range(4):
        for block in range(turn, 4 + turn):
            made.disk.write(block, 10 * turn + block + 1)
        made.backup()
    repository = made.fresh()
    first = repository.points_of().points[0]
    trash.remove(repository, first)
    verify(repository, VerifyRequest(wanted=ALL, workers=1))
    made.collect()
    trash.remove(repository, repository.points_of().points[0])
    removals.record(repository, [first.key])
    repository.put_object(names.damage_of(b"\1" * 16), damage.encode(PackDamage(frozenset({0}), "it was changed")))
    lease = Lease(repository, "backup")
    packs = [name for name in made.store.objects if name.startswith("packs/")]
    condemned.condemn(repository, packs[0])
    condemned.list_for_deletion(repository, lease.id, [f"packs/00/{'0' * 32}"])
    last = repository.points_of().points[-1]
    repository.put_object(f"drafts/{lease.id}/{UUID}/{last.id}/{'0' * 16}", manifests.encode(last))
    assert all(any(f"{name}/".startswith(f"{folder}/") for name in made.store.objects) for folder in FOLDERS)
    return made


def goes_on(history: EngineHistory) -> None:
    """Back up, restore, verify, remove and reclaim."""
    before = {each.id for each in history.fresh().points_of().points}
    history.disk.write(3, 77)
    made = history.backup()
    assert {each.id for each in history.fresh().points_of().points} == before | {made.id}
    assert not history.wrong()
    verdicts, _seconds = verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1))
    assert [verdict.damage for verdict in verdicts] == [()] * len(verdicts) != []
    trash.remove(history.fresh(), history.fresh().points_of().points[0])
    history.collect()
    assert not history.wrong()
    history.disk.write(4, 78)
    history.backup()
    history.collect()
    assert not history.wrong()
    assert {name for name in history.store.objects if name.startswith(("packs/", "points/"))} == history.needed()


@pytest.mark.parametrize("lost", [*FOLDERS, "all of them"])
def test_a_repository_survives_the_loss_of_expendable_objects(
    lost: str, history: EngineHistory, cache_folder: Path
) -> None:
    folders = FOLDERS if lost == "all of them" else (lost,)
    if lost == "all of them":
        shutil.rmtree(cache_folder)
    for name in list(history.store.objects):
        if any(f"{name}/".startswith(f"{folder}/") for folder in folders):
            del history.store.objects[name]
    goes_on(history)


def test_the_local_index_is_lost(history: EngineHistory, cache_folder: Path) -> None:
    assert list(cache_folder.iterdir())
    shutil.rmtree(cache_folder)
    goes_on(history)
    assert list(cache_folder.iterdir())


def test_a_lost_configuration_file_is_damage(history: EngineHistory) -> None:
    point = history.fresh().points_of().points[-1]
    name = f"{point.folder}/{point.files['domain.xml'].name}"
    del history.store.objects[name]
    verdicts, _seconds = verify(history.fresh(), VerifyRequest(workers=1))
    assert [name in each.cause for verdict in verdicts for each in verdict.damage] == [True]
    assert history.read(point.id) == history.truth[point.id], "its disks can still be restored"
