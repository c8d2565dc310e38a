"""The engine on the path as plain Python."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins" / "module_utils"))

from _cbt.repository.repository import Repository, open_or_create  # noqa: E402


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what may be lost is kept, each test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "kvm.cbt"


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fails a test that leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert not left, f"threads left running: {left}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where ``repository`` is, and nothing yet without it."""
    return tmp_path / "repository"


@pytest.fixture
def repository(place: Path) -> Repository:
    """A new repository in a directory."""
    made = open_or_create(str(place))
    assert made is not None
    return made
