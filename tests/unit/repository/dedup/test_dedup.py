# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks that are stored already are not stored again, and whatever becomes of the index, what is restored is the same."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soaks
from disks_for_tests import MemoryDisk, back_up, block, restored
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import UUID, hooks_of, pack_ref, point, record, run_of, uuid_of
from stores_for_tests import MemoryStore, with_bit_flipped

from _cbt.errors import RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.repository.dedup import dedup, index
from _cbt.repository.dedup.dedup import Deduplicator
from _cbt.repository.dedup.index import HookIndex
from _cbt.repository.format import hooks, names
from _cbt.repository.format.hooks import PackHooks
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import ExtentMap
from _cbt.repository.format.packs import Directory, PackRef
from _cbt.repository.packs.writer import BlockAddress
from _cbt.repository.records import damage
from _cbt.repository.records.damage import PackDamage
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import condemned

KINDS = list(range(1, 301))


@pytest.fixture
def memory() -> Repository:
    return Repository(MemoryStore(), "r" * 32)


def the_index(cache_folder: Path) -> list[Path]:
    """The files of the index, the oldest first."""
    found = sorted(cache_folder.glob("*/*.hooks"))
    assert found
    return found


def spoiled(path: Path, begin: int = 4096) -> None:
    """All but the beginning made something else."""
    data = path.read_bytes()
    path.write_bytes(data[:begin] + random.Random(0).randbytes(len(data) - begin))


# What is found.


def test_the_same_content_on_another_disk_in_any_order_of_regions_is_stored_once(memory: Repository) -> None:
    back_up(memory, MemoryDisk(KINDS), "one")
    moved = MemoryDisk([*KINDS[150:], *KINDS[:150]])
    extents, counted = back_up(memory, moved, "two", domain="other")
    assert restored(memory, extents) == moved.content(0, 300)
    assert counted.new_bytes <= 16 * BLOCK_SIZE, "what comes before the first hook may be missed"
    assert counted.deduplicated_bytes + counted.new_bytes == 300 * BLOCK_SIZE
    assert len(extents.packs) <= 2


def test_a_worker_waits_for_what_another_one_is_just_loading(
    memory: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(memory, MemoryDisk(KINDS), "one")
    asking, go_on = threading.Semaphore(0), threading.Event()
    directory = memory.reader.directory

    def slow(ref: PackRef) -> Directory:
        asking.release()
        assert go_on.wait(20)
        return directory(ref)

    monkeypatch.setattr(memory.reader, "directory", slow)
    asked = dedup.deduplicator(memory, dedup.REPOSITORY, "other", {})
    assert asked is not None
    ids = [memory.keys.block_id(block(kind)) for kind in KINDS]
    found: list[int] = []

    def ask() -> None:
        with asked.finder() as find:
            found.append(len(find(ids)))

    threads = [threading.Thread(target=ask) for _number in range(3)]
    for thread in threads:
        thread.start()
    assert asking.acquire(timeout=20)
    threads[0].join(0.3)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert found == [300, 300, 300]


def test_content_repeated_in_one_run_is_stored_once(memory: Repository) -> None:
    disk = MemoryDisk(KINDS[:40] * 3 + [7] * 5)
    extents, counted = back_up(memory, disk, "one")
    assert restored(memory, extents) == disk.content(0, 125)
    assert counted.new_bytes == counted.stored_bytes
    # Two workers may store the same block at the same time.
    assert 40 * BLOCK_SIZE <= counted.new_bytes <= 80 * BLOCK_SIZE
    assert counted.new_bytes + counted.deduplicated_bytes == counted.read_bytes == disk.size


def test_a_short_last_block_is_not_taken_for_a_whole_one(memory: Repository) -> None:
    whole, short = MemoryDisk(KINDS), MemoryDisk(KINDS, short=512)
    back_up(memory, whole, "one")
    extents, counted = back_up(memory, short, "two")
    assert restored(memory, extents) == short.content(0, 300)
    assert counted.new_bytes % BLOCK_SIZE == BLOCK_SIZE - 512


def test_the_parents_blocks_stay_where_they_are(memory: Repository) -> None:
    """What equals the parent at its place is kept before anything is looked for."""
    base, _counted = back_up(memory, MemoryDisk(KINDS), "one")
    extents, counted = back_up(memory, MemoryDisk(KINDS), "two", base)
    assert list(extents.runs()) == list(base.runs())
    assert (counted.unchanged_bytes, counted.deduplicated_bytes, counted.new_bytes) == (300 * BLOCK_SIZE, 0, 0)


def test_the_scope_of_a_domain_finds_its_own_packs_and_none_finds_nothing(memory: Repository) -> None:
    back_up(memory, MemoryDisk(KINDS), "one", domain="a")
    disk = MemoryDisk(KINDS)
    assert back_up(memory, disk, "two", scope=dedup.DOMAIN, domain="b")[1].deduplicated_bytes == 0
    assert back_up(memory, disk, "three", scope=dedup.DOMAIN, domain="a")[1].deduplicated_bytes > 250 * BLOCK_SIZE
    assert back_up(memory, disk, "four", scope=dedup.NONE, domain="a")[1].deduplicated_bytes == 0
    assert {name.split("/")[1] for name in memory.store.list("hooks")} == {uuid_of("a"), uuid_of("b")}


@pytest.mark.parametrize("listed", [False, True], ids=["condemned", "doomed"])
def test_packs_pending_deletion_are_not_used(listed: bool, memory: Repository) -> None:
    base, _counted = back_up(memory, MemoryDisk(KINDS), "one")
    if listed:
        condemned.list_for_deletion(memory, "0" * 16, [ref.name for ref in base.packs])
    for ref in base.packs if not listed else ():
        condemned.condemn(memory, ref.name)
    extents, counted = back_up(memory, MemoryDisk(KINDS), "two")
    assert counted.new_bytes == 300 * BLOCK_SIZE
    assert not set(extents.packs) & set(base.packs)


def test_damaged_blocks_are_stored_again_and_their_neighbours_are_not(memory: Repository) -> None:
    base, _counted = back_up(memory, MemoryDisk(KINDS), "one")
    (ref,) = base.packs
    bad = frozenset([5, 6, 299])
    memory.put_object(names.damage_of(ref.id), damage.encode(PackDamage(bad, "")))
    extents, counted = back_up(memory, MemoryDisk(KINDS), "two")
    assert 3 * BLOCK_SIZE <= counted.new_bytes <= 32 * BLOCK_SIZE
    assert not bad & {run.ordinal + index for run in extents.runs() if run.pack == ref for index in range(run.count)}
    memory.put_object(names.damage_of(ref.id), damage.encode(PackDamage(None, "")))
    extents, counted = back_up(memory, MemoryDisk(KINDS), "three")
    assert ref not in extents.packs


def test_a_hit_also_loads_the_pack_written_next(memory: Repository) -> None:
    """So a disk that is read in order misses the beginning of its first pack only."""
    ids = [bytes([number]) * 32 for number in range(20)]
    found = [PackHooks(pack_ref(number), (hooks.key_of(ids[number]),)) for number in range(4)]
    dedup.store_hooks(memory, dedup.of_backup(uuid_of("a"), run_of("one")), found[:3])
    dedup.store_hooks(memory, dedup.of_backup(uuid_of("a"), run_of("two")), found[3:])
    index = HookIndex(memory)
    index.refresh()
    with index.lookup() as lookup:
        assert list(lookup([ids[0]])) == [pack_ref(0), pack_ref(1)]
        assert list(lookup([ids[2]])) == [pack_ref(2)]
        assert list(lookup(ids[4:])) == []
        assert list(lookup([ids[3], ids[1]])) == [pack_ref(3), pack_ref(1), pack_ref(2)]


def test_hooks_of_very_many_packs_are_stored_in_several_objects(
    memory: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "PACKS_PER_OBJECT", 3)
    dedup.store_hooks(
        memory,
        dedup.of_backup(uuid_of("a"), run_of("one")),
        [PackHooks(pack_ref(number), (number,)) for number in range(8)],
    )
    assert sorted(memory.store.list("hooks")) == [hooks_of("a", "one", number) for number in range(3)]
    dedup.store_hooks(memory, dedup.of_backup(uuid_of("a"), run_of("two")), [])
    assert len(list(memory.store.list("hooks"))) == 3, "a run that stored nothing leaves no object"


# What may happen to the index.


def test_a_lost_index_is_rebuilt_from_the_repository(memory: Repository, cache_folder: Path) -> None:
    back_up(memory, MemoryDisk(KINDS), "one")
    back_up(memory, MemoryDisk(KINDS), "two")
    shutil.rmtree(cache_folder)
    assert back_up(memory, MemoryDisk(KINDS), "three")[1].deduplicated_bytes > 250 * BLOCK_SIZE


def test_lost_hooks_cost_space_only(memory: Repository) -> None:
    back_up(memory, MemoryDisk(KINDS), "one")
    back_up(memory, MemoryDisk(KINDS), "two")  # fills the index
    for name in list(memory.store.list("hooks")):
        memory.store.delete(name)
    extents, counted = back_up(memory, MemoryDisk(KINDS), "three")
    assert counted.new_bytes == 300 * BLOCK_SIZE, "the index forgets what the repository lost"
    assert restored(memory, extents) == MemoryDisk(KINDS).content(0, 300)


def test_damaged_hooks_are_passed_over(memory: Repository) -> None:
    back_up(memory, MemoryDisk(KINDS), "one")
    (name,) = memory.store.list("hooks")
    memory.store.put(name, with_bit_flipped(memory.store.get(name), 1000))
    assert back_up(memory, MemoryDisk(KINDS), "two")[1].new_bytes == 300 * BLOCK_SIZE


@pytest.mark.parametrize("fault", ["deleted", "directory damaged", "cut", "another pack's bytes"])
def test_a_pack_that_is_gone_or_damaged_behind_the_index_is_not_used(fault: str, memory: Repository) -> None:
    base, _counted = back_up(memory, MemoryDisk(KINDS), "one")
    other, _counted = back_up(memory, MemoryDisk(KINDS), "other", scope=dedup.NONE)
    (name,), data = [ref.name for ref in base.packs], memory.store.get(base.packs[0].name)
    changes = {
        "directory damaged": with_bit_flipped(data, (len(data) - 1000) * 8),
        "cut": data[:-1],
        "another pack's bytes": memory.store.get(other.packs[0].name),
    }
    memory.store.put(name, changes.get(fault, b""))
    if fault == "deleted":
        memory.store.delete(name)
    again = Repository(memory.store, memory.id)  # remembers no directory
    extents, counted = back_up(again, MemoryDisk(KINDS), "two")
    assert counted.new_bytes == 300 * BLOCK_SIZE
    assert restored(again, extents) == MemoryDisk(KINDS).content(0, 300)


@pytest.mark.parametrize(
    "content",
    [
        "text",
        "empty",
        "spoiled",
        "spoiled head",
        "other entries",
        "cut",
        "another format",
        "a folder",
        "nothing readable",
    ],
)
def test_a_backup_is_correct_with_any_index_content_and_the_next_one_deduplicates(
    content: str, memory: Repository, cache_folder: Path
) -> None:
    disk = MemoryDisk(KINDS)
    back_up(memory, disk, "one")
    back_up(memory, disk, "two")
    for path in the_index(cache_folder):
        data = path.read_bytes()
        if content in ("text", "empty"):
            path.write_bytes(b"" if content == "empty" else b"text " * 10000)
        elif content.startswith("spoiled"):
            spoiled(path, 8 if content == "spoiled head" else 4096)
        elif content == "other entries":
            path.write_bytes(data[:4096] + random.Random(0).randbytes(4096) + data[8192:])
        elif content == "cut":
            path.write_bytes(data[:5000])
        elif content == "another format":
            path.write_bytes(b"KVMCBTX9" + data[8:])
        elif content == "a folder":
            path.unlink()
            path.mkdir()
        else:
            path.unlink()
            path.symlink_to(path)
    extents, _counted = back_up(memory, disk, "three")
    assert restored(memory, extents) == disk.content(0, 300)
    for path in cache_folder.glob("*/*.hooks"):
        if content in ("a folder", "nothing readable"):
            path.rmdir() if path.is_dir() else path.unlink()
    assert back_up(memory, disk, "four")[1].deduplicated_bytes > 250 * BLOCK_SIZE


def test_wrong_places_in_the_index_cannot_mislead(memory: Repository) -> None:
    """The directory of a pack is read and proven, whatever the index said of it."""
    base, _counted = back_up(memory, MemoryDisk(KINDS), "one")
    (ref,), (name,) = base.packs, memory.store.list("hooks")
    (true,) = hooks.decode(memory.store.get(name), name)
    wrong = [
        PackRef(ref.id, ref.size - 44, ref.blocks),
        PackRef(ref.id, ref.size, ref.blocks - 1),
        PackRef(ref.id, ref.size, (1 << 32) - 1),
        pack_ref(9),
    ]
    for number, each in enumerate(wrong):
        for hooked in list(memory.store.list("hooks")):
            memory.store.delete(hooked)
        dedup.store_hooks(
            memory, dedup.of_backup(uuid_of("domain"), run_of(f"wrong-{number}")), [PackHooks(each, true.keys)]
        )
        disk = MemoryDisk([*KINDS, 1000 + number])
        extents, _counted = back_up(memory, disk, f"wrong-{number}", scope=dedup.REPOSITORY)
        assert restored(memory, extents) == disk.content(0, 301)


def test_an_unwritable_index_is_reported_and_costs_only_space(memory: Repository, cache_folder: Path) -> None:
    cache_folder.parent.mkdir(parents=True)
    cache_folder.write_bytes(b"a file where the folder should be")
    finding = dedup.deduplicator(memory, dedup.REPOSITORY, UUID, {})
    assert finding is not None
    assert str(cache_folder) in str(finding.failure)
    disk = MemoryDisk(KINDS[:50] * 2)
    extents, counted = back_up(memory, disk, "one")
    assert restored(memory, extents) == disk.content(0, 100)
    assert counted.deduplicated_bytes > 0, "what the run itself stored is known all the same"


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_the_index_is_never_relative_to_the_working_directory(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME") if value is None else monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert index.cache_folder() == "/var/cache/kvm.cbt"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert index.cache_folder() == os.path.expanduser("~/.cache/kvm.cbt")


def test_an_index_being_filled_by_another_process_is_used_in_its_current_state(
    memory: Repository, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(memory, MemoryDisk(KINDS), "one")
    back_up(memory, MemoryDisk(KINDS), "two")
    monkeypatch.setattr("_cbt.repository.dedup.index._WAIT", 0.05)
    with open(the_index(cache_folder)[0].with_name("lock"), "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        dedup.store_hooks(memory, dedup.of_backup(uuid_of("a"), run_of("unknown")), [PackHooks(pack_ref(1), (1,))])
        index = HookIndex(memory)
        index.refresh()
        assert index.failure is None and hooks_of("a", "unknown") not in dict(index.packs())
        assert back_up(memory, MemoryDisk(KINDS), "three")[1].deduplicated_bytes > 250 * BLOCK_SIZE


FILLER = """
import sys
sys.path.insert(0, sys.argv[1])
from _cbt.repository.dedup import dedup
from _cbt.repository.repository import open_repository
for _again in range(5):
    found = dedup.deduplicator(open_repository(sys.argv[2]), "repository", "b9a7f3d0-1111-4222-8333-444455556666", {})
    if found.failure:
        sys.exit(found.failure)
"""


def test_processes_that_fill_one_index_at_the_same_time_do_not_fail(
    repository: Repository, place: Path, cache_folder: Path
) -> None:
    for number in range(300):
        dedup.store_hooks(
            repository, dedup.of_backup(uuid_of("a"), run_of(str(number))), [PackHooks(pack_ref(number), (number,))]
        )
    engine = str(Path(__file__).resolve().parents[4] / "plugins" / "module_utils")
    command = [sys.executable, "-c", FILLER, engine, str(place)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, env=dict(os.environ)) for _process in range(4)]
    printed = [process.communicate()[1] for process in running]
    assert [(process.returncode, said) for process, said in zip(running, printed)] == [(0, b"")] * 4
    index = HookIndex(repository)
    assert sorted(index.packs()) == sorted((hooks_of("a", str(number)), pack_ref(number).id) for number in range(300))
    assert len({path.stem for path in cache_folder.rglob("*") if path.is_file()}) < 10, "what was merged is gone"


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from _cbt.repository.dedup import dedup, index
from _cbt.repository.repository import open_repository
index._SOURCES, index._AT_ONCE = 10, 1
left = int(sys.argv[3])
def ending(call):
    def counted(*arguments, **options):
        global left
        if options.get("dir_fd") is not None or str(arguments[0]) == sys.argv[2]:
            return call(*arguments, **options)  # of the repository's own files
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*arguments)
    return counted
for name in ("rename", "unlink", "pwrite", "open", "flock"):
    if hasattr(os, name):
        setattr(os, name, ending(getattr(os, name)))
index.hooks.decode = ending(index.hooks.decode)
dedup.deduplicator(open_repository(sys.argv[2]), "repository", "b9a7f3d0-1111-4222-8333-444455556666", {})
"""


def test_a_process_that_is_killed_while_it_fills_the_index_loses_little_and_leaves_nothing(
    repository: Repository, place: Path, cache_folder: Path
) -> None:
    for number in range(100):
        dedup.store_hooks(
            repository,
            dedup.of_backup(uuid_of("a"), run_of(str(number))),
            [PackHooks(pack_ref(number), (number << 40,))],
        )
    engine = str(Path(__file__).resolve().parents[4] / "plugins" / "module_utils")
    held = []
    for turn in range(40):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, engine, str(place), str(17 + turn)], check=False
        ).returncode
        held.append(len(dict(HookIndex(repository).packs())))
        if not ended:
            break
    assert 0 < held[0] < held[-1] == 100, "each one goes on where the one before it ended"
    index = HookIndex(repository)
    index.refresh()
    assert sorted(index.packs()) == sorted((hooks_of("a", str(number)), pack_ref(number).id) for number in range(100))
    assert [path.name for path in cache_folder.rglob("*.partial")] == []


def test_a_failing_store_is_an_error_and_not_a_lost_index(memory: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    back_up(memory, MemoryDisk(KINDS), "one")
    finding = dedup.deduplicator(memory, dedup.REPOSITORY, UUID, {})
    assert finding is not None

    def fails(*_arguments: object) -> bytes:
        raise RepositoryError("Cannot read: time-out.")

    monkeypatch.setattr(MemoryStore, "get_range", fails)
    monkeypatch.setattr(memory, "reader", type(memory.reader)(memory.store, memory.keys))
    with finding.finder() as find, pytest.raises(RepositoryError, match="time-out"):
        find({memory.keys.block_id(block(kind)): None for kind in KINDS})


# Upkeep.


def published(repository: Repository, extents: ExtentMap, number: int = 1) -> RestorePoint:
    """A restore point with this one disk."""
    files = repository.put_files(point(number).folder, {"vda.map": extents.encode()})
    made = point(number, (record("vda", extents.size, map=files["vda.map"]),))
    repository.publish(made)
    return made


def test_hooks_that_were_all_lost_are_made_again_from_the_packs(memory: Repository) -> None:
    extents, _counted = back_up(memory, MemoryDisk(KINDS), "one")
    made = published(memory, extents)
    (name,) = memory.store.list("hooks")
    before = hooks.decode(memory.store.get(name), name)
    memory.store.delete(name)
    assert dedup.tidy(memory, [made]) == (1, 0)
    (name,) = memory.store.list("hooks")
    assert hooks.decode(memory.store.get(name), name) == before
    assert dedup.tidy(memory, [made]) == (0, 0), "what is in order stays as it is"
    assert back_up(memory, MemoryDisk(KINDS), "two")[1].deduplicated_bytes > 250 * BLOCK_SIZE


def test_hooks_go_once_none_of_their_packs_exists(memory: Repository) -> None:
    one, _counted = back_up(memory, MemoryDisk(KINDS[:100]), "one")
    two, _counted = back_up(memory, MemoryDisk(KINDS[100:]), "two")
    made = published(memory, two)
    for ref in one.packs:
        memory.store.delete(ref.name)
    assert dedup.tidy(memory, [made]) == (0, 1)
    assert list(memory.store.list("hooks")) == [hooks_of("domain", "two")]


def test_one_of_two_objects_with_hooks_of_the_same_packs_is_deleted(memory: Repository) -> None:
    extents, _counted = back_up(memory, MemoryDisk(KINDS), "one")
    made = published(memory, extents)
    (name,) = memory.store.list("hooks")
    memory.store.put(hooks_of("domain", "two"), memory.store.get(name))
    assert dedup.tidy(memory, [made]) == (0, 1)
    assert dedup.tidy(memory, [made]) == (0, 0)
    assert back_up(memory, MemoryDisk(KINDS), "two")[1].deduplicated_bytes > 250 * BLOCK_SIZE


def test_upkeep_without_an_index_changes_nothing(memory: Repository, cache_folder: Path) -> None:
    extents, _counted = back_up(memory, MemoryDisk(KINDS), "one")
    made = published(memory, extents)
    for ref in extents.packs:
        memory.store.delete(ref.name)
    shutil.rmtree(cache_folder)
    cache_folder.write_bytes(b"")
    assert dedup.tidy(memory, [made]) == (0, 0)
    assert len(list(memory.store.list("hooks"))) == 1


# Memory.


def test_the_blocks_remembered_are_bounded_and_the_latest_are_among_them(
    memory: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "REMEMBERED", 1000)
    finding = Deduplicator(memory, HookIndex(memory), {})
    ids = [number.to_bytes(32, "big") for number in range(10_000)]
    for start in range(0, 10_000, 20):
        finding.stored(BlockAddress(bytes(16), start), ids[start : start + 20])
    with finding.finder() as find:
        known = find(ids)
    assert 500 <= len(known) <= 1040
    assert all(known[each] == BlockAddress(bytes(16), number) for number, each in enumerate(ids) if number >= 9500)


# Nothing of it ever shows in what is restored.

Step = tuple[str, str, str, list[tuple[int, int]], int]
ACTIONS = [
    "back up",
    "back up from base",
    "lose index",
    "spoil index",
    "lose hooks",
    "spoil hooks",
    "lose unnamed packs",
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*ACTIONS, "back up", "back up"]),
        st.sampled_from([dedup.REPOSITORY, dedup.DOMAIN, dedup.NONE]),
        st.sampled_from(["a", "b"]),
        st.lists(st.tuples(st.integers(0, 120), st.integers(0, 40)), min_size=1, max_size=4),
        st.sampled_from([0, 512]),
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=soaks.examples(0.53))
@given(STEPS)
def test_every_point_restores_to_its_bytes_after_any_sequence_of_events(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    folder = tmp_path_factory.mktemp("case")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("XDG_CACHE_HOME", str(folder))
        _play(steps, folder / "kvm.cbt")
    shutil.rmtree(folder)


def _play(steps: list[Step], cache: Path) -> None:
    store = MemoryStore()
    taken: list[tuple[ExtentMap, MemoryDisk]] = []
    for number, (action, scope, domain, ranges, short) in enumerate(steps):
        repository = Repository(store, "r" * 32)
        if action.startswith("back up"):
            disk = MemoryDisk([kind for first, count in ranges for kind in range(first, first + count)] or [1], short)
            base = taken[-1][0] if taken and action.endswith("base") else None
            taken.append((back_up(repository, disk, str(number), base, scope, domain)[0], disk))
        elif action == "lose index":
            shutil.rmtree(cache, ignore_errors=True)
        elif action == "spoil index":
            for path in cache.glob("*/*.hooks"):
                spoiled(path)
        elif action in ("lose hooks", "spoil hooks"):
            for name in list(store.list("hooks"))[::2]:
                store.delete(name) if action == "lose hooks" else store.put(
                    name, with_bit_flipped(store.get(name), 300)
                )
        else:
            taken = taken[1:]
            named = {ref.name for extents, _disk in taken for ref in extents.packs}
            for name in set(store.list("packs")) - named:
                store.delete(name)
    for extents, disk in taken:
        assert restored(Repository(store, "r" * 32), extents) == disk.content(0, len(disk.kinds))
