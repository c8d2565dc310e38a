# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of the host is opened as the kernel would, but through no link of another user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _cbt.trusted_files import open_file


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file, and links that lead to it in all ways there are."""
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "real/file").write_bytes(b"content")
    for name, target in {
        "relative": "real/file",
        "absolute": str(tmp_path / "real/file"),
        "over another": "relative",
        "up": "real/below/../file",
        "folder": "real",
        "real/below/up": "../file",
        "round": "round",
        "nowhere": "none",
    }.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


GOOD = (
    "real/file",
    "relative",
    "absolute",
    "over another",
    "up",
    "folder/file",
    "folder/below/up",
    "real/./below//../file",
)


def _open_handles() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", GOOD)
def test_links_of_ones_own_are_followed(name: str, place: Path) -> None:
    before = _open_handles()
    with open_file(f"{place}/{name}") as file:
        assert file.read() == (place / name).read_bytes() == b"content"
    assert _open_handles() == before


@pytest.mark.parametrize("name", ["round", "nowhere", "none", "real", "pipe", "real/file/x", "/dev/null"])
def test_opening_anything_but_a_file_is_an_error_and_does_not_block(name: str, place: Path) -> None:
    before = _open_handles()
    with pytest.raises(OSError):
        open_file(os.path.join(place, name))
    assert _open_handles() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make links of others")
@pytest.mark.parametrize("name", ["relative", "over another", "folder/file", "folder/below/up"])
def test_a_link_of_another_user_is_not_followed(name: str, place: Path) -> None:
    for link in ("relative", "folder", "real/below/up"):
        os.lchown(place / link, 65534, 65534)
    with pytest.raises(OSError, match="a link of another user"):
        open_file(f"{place}/{name}")
    assert (place / name).read_bytes() == b"content"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")
def test_a_link_to_a_file_of_the_same_user_is_not_followed(place: Path) -> None:
    """The other way round: a file of another user behind a link of root's is read."""
    os.chown(place / "real/file", 65534, 65534)
    assert open_file(f"{place}/relative").read() == b"content"
