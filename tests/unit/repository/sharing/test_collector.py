"""What a collector leaves alone, refuses and tidies up; what it does beside others is for test_sharing."""

from __future__ import annotations

import random
import time
import types
from typing import Any

import pytest
import soaks
from histories import BLOCKS, History
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import UUID, point_id
from stores_for_tests import with_bit_flipped

from _cbt.errors import Refused, StorageFull
from _cbt.operations.upkeep import retention as retaining
from _cbt.operations.upkeep.retention import RetentionRequest, RetentionResult, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.dedup import dedup
from _cbt.repository.format import names
from _cbt.repository.records import damage
from _cbt.repository.records.damage import PackDamage
from _cbt.repository.sharing import condemned, holding, leases, publishing
from _cbt.repository.stores.base import Foreign


@pytest.fixture
def history() -> History:
    """Three points that share one block: of the first pack that is all the later ones need, of the second nothing once its point is gone."""
    made = History()
    for number in range(3):
        for block in range(BLOCKS):
            if block or not number:
                made.disk.write(block, 1000 * number + block + 1)
        made.backup()
    made.store.clock = time.time()  # after the points
    return made


def run(history: History, check_only: bool = False, **fields: object) -> RetentionResult:
    """One run without grace."""
    return retention(history.fresh(), RetentionRequest(**{"rules": Rules(last=-1), "grace": 0, **fields}), check_only)  # type: ignore[arg-type]


def packs(history: History) -> set[str]:
    return set(history.store.list("packs"))


def forget(history: History, *numbers: int) -> None:
    """Have points vanish without a trace."""
    for number in numbers:
        history.store.delete(names.manifest(UUID, point_id(number)))


def whole(history: History) -> bool:
    return (history.untrue(), history.damaged()) == ([], [])


def test_a_locked_object_stays_announced_and_is_deleted_once_the_lock_ends(history: History) -> None:
    second = history.block_place(point_id(2), 5)[0]
    history.store.locks[second] = history.store.clock + 100
    forget(history, 2)
    told = run(history, check_only=True)
    assert run(history).collected == told.collected
    assert second in packs(history)
    assert second in condemned.announced(history.fresh()), "nobody may build on it meanwhile"
    history.store.clock += 101
    run(history)
    assert second not in packs(history)
    assert whole(history)


def test_an_object_whose_deletion_cannot_be_announced_for_lack_of_space_is_not_deleted(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = history.block_place(point_id(2), 5)[0]
    put = history.store.put

    def full(name: str, data: bytes, replace: bool = True) -> bool:
        if name == names.announcement(second):
            raise StorageFull(f"Cannot write {name}: No space left on device.")
        return put(name, data, replace)

    monkeypatch.setattr(history.store, "put", full)
    forget(history, 2)
    collected = run(history).collected
    assert collected is not None and collected.unannounced == 1
    assert second in packs(history)
    monkeypatch.setattr(history.store, "put", put)
    run(history)
    assert second not in packs(history)
    assert whole(history)


def test_a_point_that_is_locked_is_kept_and_says_so(history: History) -> None:
    history.store.locks[names.manifest(UUID, point_id(1))] = history.store.clock + 100
    result = run(history, rules=Rules(last=1))
    assert {verdict.point.id: verdict.rules for verdict in result.kept} == {
        point_id(1): ("locked",),
        point_id(3): ("last",),
    }
    assert [each.id for each in result.removed] == [point_id(2)]
    assert whole(history)


def test_the_announcement_of_a_needed_object_is_withdrawn_and_others_keep_their_time(history: History) -> None:
    needed, idle = (history.block_place(point_id(number), 5)[0] for number in (3, 2))
    for name in (needed, idle):
        condemned.condemn(history.fresh(), name)
    announced_at = history.store.clock
    forget(history, 2)
    history.store.clock += 50
    run(history, grace=100)
    assert condemned.announced(history.fresh()).get(idle) == announced_at
    assert needed not in condemned.announced(history.fresh())
    assert whole(history)


def test_far_fewer_points_than_the_last_time_ask_for_confirmation(history: History) -> None:
    run(history)
    forget(history, 1, 2)  # as on storage of which a part is missing
    before = packs(history)
    for check_only in (True, False):
        with pytest.raises(
            Refused, match="1 restore points are listed where there were 3 the last time.*confirm_shrink"
        ):
            run(history, check_only)
    assert packs(history) == before
    assert run(history, check_only=True, confirm_shrink=True).collected
    run(history, confirm_shrink=True)
    assert packs(history) < before
    run(history)  # it was confirmed once and for all
    assert whole(history)


def test_half_of_the_points_asks_for_confirmation(history: History) -> None:
    history.backup()
    run(history)
    forget(history, 1, 2)
    with pytest.raises(Refused, match="2 restore points are listed where there were 4 the last time"):
        run(history)


def test_while_a_manifest_is_damaged_nothing_is_reclaimed(history: History) -> None:
    name = names.manifest(UUID, point_id(2))
    sound = history.store.objects[name]
    history.store.objects[name] = with_bit_flipped(sound, 2000)
    forget(history, 1)
    before = packs(history)
    result = run(history, compact_below=100)
    assert (result.compacted, result.collected, list(result.damaged)) == (None, None, [name])
    assert packs(history) == before
    history.store.objects[name] = sound
    run(history)
    assert whole(history)


def test_a_damage_record_is_deleted_with_its_pack_and_not_before(history: History) -> None:
    ids = [bytes.fromhex(history.block_place(point_id(number), 5)[0].rpartition("/")[2]) for number in (2, 3)]
    for pack in ids:
        history.repository.put_object(names.damage_of(pack), damage.encode(PackDamage(frozenset({1}), "a bit")))
    run(history)
    assert set(damage.read_all(history.fresh())) == set(ids)
    forget(history, 2)
    run(history)
    assert set(damage.read_all(history.fresh())) == {ids[1]}


def test_a_run_with_compaction_leaves_of_a_pack_what_is_needed(history: History) -> None:
    first = history.block_place(point_id(1), 0)[0]
    told = run(history, True, rules=Rules(last=2), compact_below=50)
    result = run(history, rules=Rules(last=2), compact_below=50)
    assert result.changed and result.compacted is not None and told.compacted is not None
    assert (result.compacted.packs, result.compacted.points, result.compacted.copied_bytes) == (1, 2, 65536)
    assert (told.compacted.packs, told.changed) == (1, True)
    assert 65536 <= told.compacted.copied_bytes < 66000
    assert first not in packs(history)
    assert whole(history)
    assert not run(history, rules=Rules(last=2), compact_below=50).changed


def test_what_a_removed_point_needs_is_not_worth_a_compaction_until_it_cannot_be_brought_back(history: History) -> None:
    result = run(history, rules=Rules(last=2), compact_below=50, grace=100)
    assert result.compacted is not None and result.compacted.packs == 0
    run(history, rules=None, undelete=(point_id(1),), grace=100)
    assert len(history.fresh().points_of().points) == 3 and whole(history)
    run(history, rules=Rules(last=2), grace=100)
    history.store.clock += 101
    result = run(history, rules=Rules(last=2), compact_below=50, grace=100)
    assert result.compacted is not None and result.compacted.packs == 1
    assert whole(history)


def test_lost_hooks_are_made_again_and_idle_ones_go(history: History) -> None:
    dedup.store_hooks(history.fresh(), dedup.of_backup(UUID, point_id(9)), [])
    run(history)
    assert {name.rpartition("/")[2].partition("-")[0] for name in history.store.list("hooks")} <= {
        point_id(number).partition("-")[0] for number in (1, 2, 3)
    }
    assert list(history.store.list("hooks"))
    before = set(history.store.list("hooks"))
    run(history)
    assert set(history.store.list("hooks")) == before


FOREIGN = (
    *(
        f"condemned/{name}"
        for name in (
            "README",
            "ABCDEF" + "0" * 26,
            "0" * 31,
            "one/two/three",
            f"{UUID}/notes",
            f"{UUID}/{point_id(1)}/manifest.json",
        )
    ),
    *(f"trash/{name}" for name in ("README", "", f"{UUID}/notes", f"{UUID}/{point_id(1)}/0/1")),
    *(
        "packs/README",
        "points/README",
        f"points/{UUID}/{point_id(1)}/.vda.map.swp",
        "drafts/x",
        "doomed/x",
        "leases/x",
        "damaged/x",
        "verified/x",
        "hooks/x/y",
    ),
)


NOT_SEEN = ("verified/", "hooks/")  # what a collection does not list


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_named_once_kept_and_stops_nothing(name: str, history: History) -> None:
    history.store.objects[name] = b"somebody's"
    second = history.block_place(point_id(2), 5)[0]
    forget(history, 2)
    for check_only in (True, False):
        history.store.foreign = Foreign("memory")
        collected = run(history, check_only).collected
        assert collected is not None
        assert collected.deleted > 0
        told = (f"{name!r} in memory is not an object of a repository and was skipped. Remove it.",)
        seen = not name.startswith(NOT_SEEN + (("damaged/",) if check_only else ()))
        assert collected.foreign == (told if seen else ())
    assert second not in packs(history)
    assert history.store.objects[name] == b"somebody's"
    found = history.fresh().points_of().points[0]
    assert publishing.missing(history.repository, found) == set(), "a backup can be published"


LONG = 10 * (leases.LAPSE + leases.ASTRAY)
NIGHTS = st.lists(
    st.fixed_dictionaries(
        {
            "last": st.sampled_from([1, 2, 3, -1]),
            "grace": st.sampled_from([0, 50, LONG]),
            "back": st.booleans(),
            "collect": st.booleans(),
            "compact_below": st.sampled_from([None, 60, 100]),
            "use": st.sampled_from(["", "hold", "lock", "lock pack", "backup"]),
        }
    ),
    min_size=2,
    max_size=4,
)


def _used(history: History, use: str, chance: random.Random) -> None:
    """Something happens to the repository, long before the next run."""
    taken = chance.choice(history.fresh().points_of().points)
    later = history.store.clock + 2 * leases.LAPSE + leases.ASTRAY
    if use == "hold":
        holding.hold(history.fresh(), taken, "test")
    elif use == "lock":
        history.store.locks[names.manifest(*taken.key)] = later + 1000
    elif use == "lock pack":
        history.store.locks[chance.choice(sorted(packs(history)))] = later + 1000
    elif use == "backup":
        history.disk.write(chance.randrange(1, BLOCKS), chance.randint(1, 9))
        history.backup()


def _told(result: RetentionResult, exactly: bool) -> object:
    """What a run says, but for times. Only without compaction can check mode tell ``exactly`` what is condemned and deleted."""
    return (
        [(verdict.point.key, verdict.rules) for verdict in result.verdicts],
        [each.key for each in result.undeleted],
        sorted(each.point.key for each in result.trash),
        result.damaged,
        result.compacted and result.compacted.packs,
        result.collected if exactly else result.collected is not None,
    )


def _outcome(history: History, check_only: bool, request: dict[str, Any]) -> RetentionResult | str:
    """What a run says, or why it refuses."""
    try:
        return run(history, check_only, **request)
    except Refused as error:
        return str(error)


NIGHT = {"last": 2, "grace": LONG, "back": False, "collect": True, "compact_below": None, "use": ""}
# The second night brings a point back, removes others at once, and finds packs to empty.
EMPTYING = [NIGHT, {**NIGHT, "last": 1, "grace": 0, "back": True, "compact_below": 60, "use": "backup"}]


@settings(max_examples=soaks.examples(0.2))
@example(EMPTYING, random.Random(0))
@given(NIGHTS, st.randoms(use_true_random=False))
def test_what_check_mode_predicts_is_what_the_run_does(nights: list[dict[str, Any]], chance: random.Random) -> None:
    history = History()
    for number in range(4):
        for block in range(number, BLOCKS, number + 1):
            history.disk.write(block, 1000 * number + block + 1)
        history.backup()
    history.store.clock = time.time()  # after the points
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retaining, "time", types.SimpleNamespace(time=lambda: history.store.clock))
        for night in nights:
            _used(history, night["use"], chance)
            history.store.clock += 2 * leases.LAPSE + leases.ASTRAY
            recoverable = run(history, check_only=True, collect=False, rules=None).trash
            request = {
                "rules": Rules(last=night["last"]),
                "undelete": tuple(each.point.id for each in recoverable[:1] if night["back"]),
                **{key: night[key] for key in ("grace", "collect", "compact_below")},
                "confirm_shrink": True,
            }
            before = dict(history.store.objects)
            predicted = _outcome(history, True, request)
            assert history.store.objects == before, "check mode changes nothing"
            done = _outcome(history, False, request)
            if isinstance(predicted, str) or isinstance(done, str):
                assert predicted == done
                continue
            if predicted.compacted and done.compacted:
                assert predicted.compacted.copied_bytes == pytest.approx(done.compacted.copied_bytes, rel=0.05)
            exactly = night["compact_below"] is None or not (predicted.compacted and predicted.compacted.packs)
            assert _told(predicted, exactly) == _told(done, exactly)
            assert whole(history)
