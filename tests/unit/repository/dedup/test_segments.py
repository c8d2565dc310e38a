# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of the local index find what was put into them, merged or not, and nothing else; a changed bit is noticed where it matters."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import soaks
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import pack_ref
from stores_for_tests import with_bit_flipped

from _cbt.repository.dedup import segments as files
from _cbt.repository.dedup.index import _FEW, to_merge
from _cbt.repository.dedup.segments import Gathered, Segment, Unusable, merge
from _cbt.repository.format.hooks import PackHooks
from _cbt.repository.format.packs import PackRef

Source = tuple[str, list[list[int]]]


@contextlib.contextmanager
def opened(*paths: Path) -> Iterator[list[Segment]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Segment(str(path)))) for path in paths]


def written(path: Path, sources: Sequence[Source], first: int = 0) -> Path:
    """A file with these sources, whose packs have numbers from ``first`` on."""
    gathered = Gathered()
    number = first
    for name, packs in sources:
        gathered.add(name, [PackHooks(pack_ref(number + index), tuple(keys)) for index, keys in enumerate(packs)])
        number += len(packs)
    gathered.write(str(path))
    return path


def spread(key: int) -> int:
    """A key for a small number, unlike the others in the bits that count."""
    return (key + 1) << 21 | key


KEYS = st.lists(st.integers(0, 3000).map(spread), max_size=12, unique=True)
SOURCES = st.lists(st.lists(KEYS, max_size=4), max_size=4)


@settings(max_examples=soaks.examples(0.4))
@given(st.lists(SOURCES, min_size=1, max_size=5), st.data())
def test_a_hook_leads_to_its_latest_pack_and_the_next_one_regardless_of_merge_order(
    tmp_path_factory: pytest.TempPathFactory, made: list[list[list[list[int]]]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("case")
    names = [[f"{index}-{number}" for number in range(len(sources))] for index, sources in enumerate(made)]
    dead = data.draw(st.sets(st.sampled_from(sorted(sum(names, [])) or ["none"])))
    paths, latest, number = [], {}, 0
    for index, sources in enumerate(made):
        paths.append(written(folder / str(index), list(zip(names[index], sources)), number))
        for name, packs in zip(names[index], sources):
            for offset, keys in enumerate(packs):
                near = [pack_ref(number + offset + more) for more in range(2) if offset + more < len(packs)]
                latest.update(dict.fromkeys(keys, near) if name not in dead else {})
            number += len(packs)
    with opened(*paths) as segments, pytest.MonkeyPatch.context() as changed:
        changed.setattr(files, "_WINDOW", 1)
        merge(segments, lambda name: name not in dead, str(folder / "merged"))
    with opened(folder / "merged") as (merged,):
        assert merged.sources() == [name for name in sum(names, []) if name not in dead]
        for key in range(3001):
            found = merged.near(spread(key), ())
            assert found == latest.get(spread(key), []), key


def test_files_larger_than_any_window_are_merged_whole(tmp_path: Path) -> None:
    chance = random.Random(1)
    keys = [[sorted(chance.getrandbits(61) for _key in range(32)) for _pack in range(400)] for _file in range(3)]
    paths = [written(tmp_path / str(index), [(str(index), packs)], index * 400) for index, packs in enumerate(keys)]
    with opened(*paths) as segments, pytest.MonkeyPatch.context() as changed:
        changed.setattr(files, "_WINDOW", 2)
        merge(segments, lambda name: name != "1", str(tmp_path / "merged"))
    with opened(tmp_path / "merged") as (merged,):
        assert list(merged.refs()) == [(pack_ref(n), 0) for n in range(400)] + [
            (pack_ref(n), 1) for n in range(800, 1200)
        ]
        for index, packs in enumerate(keys):
            for number, each in enumerate(packs, index * 400):
                assert {tuple(merged.near(key, ())[:1]) for key in each} == (
                    {(pack_ref(number),)} if index != 1 else {()}
                )


def test_packs_of_a_removed_source_are_not_returned(tmp_path: Path) -> None:
    with opened(written(tmp_path / "x", [("a", [[spread(1)], [spread(2)]]), ("b", [[spread(3)]])])) as (segment,):
        assert segment.near(spread(1), ()) == [pack_ref(0), pack_ref(1)]
        assert segment.near(spread(2), ()) == [pack_ref(1)], "the next one is of another source"
        assert segment.near(spread(1), {0}) == []
        assert segment.near(spread(3), {0}) == [pack_ref(2)]


def test_any_changed_bit_is_detected_or_leads_to_a_demonstrably_wrong_pack(tmp_path: Path) -> None:
    sources: list[Source] = [
        ("hooks/a/one", [[spread(n), spread(n + 50)] for n in range(50)]),
        ("hooks/a/two", [[spread(200)]]),
    ]
    whole = written(tmp_path / "x", sources).read_bytes()
    chance = random.Random(2)
    places = [*range(files._HEAD.size * 8), *chance.sample(range(files._PAGE * 8, len(whole) * 8), 400)]
    for bit in places:
        (tmp_path / "x").write_bytes(with_bit_flipped(whole, bit))
        with contextlib.suppress(Unusable), opened(tmp_path / "x") as (segment,):
            with contextlib.suppress(Unusable):
                segment.sources()
                assert files._PAGE * 8 <= bit < files._PAGE * 16, "all but entries is proven"
            with contextlib.suppress(Unusable):
                found = segment.near(spread(60), ())
                assert not files._PAGE * 8 <= bit < files._PAGE * 16, "entries are proven when they are looked at"
                assert all(isinstance(each, PackRef) for each in found)


@given(st.lists(st.integers(1, 1 << 20), max_size=20))
def test_few_files_are_left_and_little_is_written_again(sizes: list[int]) -> None:
    chosen = to_merge(sizes, [1] * len(sizes))
    assert bool(chosen) == (len(sizes) > _FEW)
    left = [size for index, size in enumerate(sizes) if index not in chosen]
    total = sum(sizes[index] for index in chosen)
    if chosen:
        assert len(chosen) >= 2 and all(size > 2 * total for size in left)


def test_a_year_of_backups_writes_each_hook_a_few_times_only() -> None:
    sizes, again = [100_000], 0
    for _backup in range(3000):
        sizes.append(1)
        while len(sizes) > _FEW:
            chosen = to_merge(sizes, [1] * len(sizes))
            merged = sum(sizes[index] for index in chosen)
            again += merged
            sizes = [size for index, size in enumerate(sizes) if index not in chosen] + [merged]
    assert again < 10 * 3000


def test_what_would_be_too_many_packs_for_one_file_is_not_merged() -> None:
    assert to_merge([1] * 9, [files.MAX_PACKS // 9] * 9) == list(range(9))
    assert to_merge([1] * 9, [files.MAX_PACKS // 8] * 9) == list(range(8))
    assert to_merge([1] * 9, [files.MAX_PACKS] * 9) == []
