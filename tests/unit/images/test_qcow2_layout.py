# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images laid out by us are what QEMU's own tools take for a sound qcow2 image with just this content."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import typing as t
from pathlib import Path

import pytest
import soaks
from hypothesis import given, settings
from hypothesis import strategies as st

from _cbt.images import qcow2_layout

CLUSTER = 65536  # the unit blocks come in, whatever the clusters of the image are


def _write(
    path: Path,
    size: int,
    ranges: t.Sequence[tuple[int, int]],
    fill: t.Callable[[int], bytes],
    features: qcow2_layout.Features = qcow2_layout.DEFAULT,
) -> qcow2_layout.Layout:
    layout = qcow2_layout.plan(
        size, [(first * CLUSTER, min(count * CLUSTER, size - first * CLUSTER)) for first, count in ranges], features
    )
    with open(path, "wb") as file:
        file.truncate(layout.file_size)
        for offset, data in layout.metadata():
            file.seek(offset)
            file.write(data)
        for first, count in ranges:
            for cluster in range(first, first + count):
                file.seek(layout.file_offset(cluster * CLUSTER))
                file.write(fill(cluster)[: size - cluster * CLUSTER])
    return layout


def _qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


@st.composite
def _disks(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    clusters = draw(st.integers(1, 40000))
    size = clusters * CLUSTER - 512 * draw(st.integers(0, 127))
    edges = sorted(set(draw(st.lists(st.integers(0, clusters), max_size=10))))
    ranges = [(first, min(stop - first, draw(st.integers(1, 40)))) for first, stop in zip(edges, edges[1:])]
    return size, [(first, count) for first, count in ranges if count]


_FEATURES = st.one_of(
    st.builds(
        qcow2_layout.Features,
        st.sampled_from([1 << bits for bits in range(9, 22)]),
        st.just(False),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(
        qcow2_layout.Features,
        st.sampled_from([1 << bits for bits in range(14, 22)]),
        st.just(True),
        st.booleans(),
        st.booleans(),
    ),
)


@settings(max_examples=soaks.examples(0.27))
@given(_disks(), _FEATURES)
def test_qemu_finds_the_image_sound_and_reads_back_every_cluster(
    disk: tuple[int, list[tuple[int, int]]], features: qcow2_layout.Features
) -> None:
    size, ranges = disk
    with tempfile.TemporaryDirectory() as folder:
        image, plain = Path(folder, "a.qcow2"), Path(folder, "a.raw")
        _write(image, size, ranges, lambda cluster: bytes([cluster % 255 + 1]) * CLUSTER, features)
        report = json.loads(_qemu_img("check", "--output=json", str(image)))
        assert {key: report.get(key, 0) for key in ("leaks", "corruptions", "check-errors")} == {
            "leaks": 0,
            "corruptions": 0,
            "check-errors": 0,
        }
        info = json.loads(_qemu_img("info", "--output=json", str(image)))
        details = info["format-specific"]["data"]
        assert (info["virtual-size"], details["compat"], details["refcount-bits"], details["corrupt"]) == (
            size,
            "1.1",
            16,
            False,
        )
        assert qcow2_layout.features_like({**details, "cluster-size": info["cluster-size"]}) == features
        with open(plain, "wb") as file:
            file.truncate(size)
            for first, count in ranges:
                for cluster in range(first, first + count):
                    file.seek(cluster * CLUSTER)
                    file.write((bytes([cluster % 255 + 1]) * CLUSTER)[: size - cluster * CLUSTER])
        _qemu_img("compare", "-f", "qcow2", "-F", "raw", str(image), str(plain))


def test_an_image_of_a_large_sparse_disk_is_thin_and_sound(tmp_path: Path) -> None:
    size = 20 << 40
    ranges = [(0, 1), (8191, 2), (size // CLUSTER - 1, 1)]
    _write(tmp_path / "big.qcow2", size, ranges, lambda _cluster: b"x" * CLUSTER)
    assert os.stat(tmp_path / "big.qcow2").st_blocks * 512 < 4 << 20
    report = json.loads(_qemu_img("check", "--output=json", str(tmp_path / "big.qcow2")))
    assert (report.get("corruptions", 0), report.get("leaks", 0), report["allocated-clusters"]) == (0, 0, 4)


def test_the_image_can_be_written_by_qemu_afterwards(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    _write(image, 64 << 20, [(3, 5)], lambda _cluster: b"y" * CLUSTER)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 32M", "-c", "read -P 7 0 32M", str(image)],
        check=True,
        capture_output=True,
    )
    _qemu_img("check", str(image))
    _qemu_img("bitmap", "--add", "-g", "65536", str(image), "b0")


@pytest.mark.parametrize(
    "features", [qcow2_layout.Features(512), qcow2_layout.Features(2 << 20, True, True, True)], ids=str
)
def test_an_image_with_all_of_its_clusters_reserved_is_sound_and_empty(
    tmp_path: Path, features: qcow2_layout.Features
) -> None:
    image, size = tmp_path / "a.qcow2", (40 << 20) + 512
    layout = qcow2_layout.plan(size, [(0, size)], features)
    with open(image, "wb") as file:
        file.truncate(layout.file_size)
        for offset, data in layout.metadata():
            file.seek(offset)
            file.write(data)
    report = json.loads(_qemu_img("check", "--output=json", str(image)))
    assert (report.get("corruptions", 0), report.get("leaks", 0)) == (0, 0)
    assert report["allocated-clusters"] == report["total-clusters"]
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"read -P 0 0 {size}", str(image)], check=True, capture_output=True)


def test_a_disk_too_large_for_its_clusters_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        qcow2_layout.plan(64 << 40, [], qcow2_layout.Features(512))


def test_an_empty_disk_makes_an_empty_image(tmp_path: Path) -> None:
    _write(tmp_path / "a.qcow2", 512, [], lambda _cluster: b"")
    assert json.loads(_qemu_img("info", "--output=json", str(tmp_path / "a.qcow2")))["virtual-size"] == 512
    _qemu_img("check", str(tmp_path / "a.qcow2"))


def test_a_place_that_was_not_planned_is_an_error() -> None:
    layout = qcow2_layout.plan(10 * CLUSTER, [(2 * CLUSTER, 3 * CLUSTER)])
    for cluster in (0, 1, 5, 9):
        with pytest.raises(KeyError):
            layout.file_offset(cluster * CLUSTER)
    assert layout.file_offset(2 * CLUSTER + 512) == layout.file_offset(2 * CLUSTER) + 512
