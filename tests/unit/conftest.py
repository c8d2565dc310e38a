"""The engine on the path as plain Python."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT / "plugins" / "module_utils"))

# The collection under its full name, by which plugins import from each other.
for _name, _path in {
    "ansible_collections": [],
    "ansible_collections.kvm": [],
    "ansible_collections.kvm.cbt": [str(_ROOT)],
}.items():
    sys.modules[_name] = types.ModuleType(_name)
    sys.modules[_name].__path__ = _path

from _cbt.repository.creation import open_or_create  # noqa: E402
from _cbt.repository.repository import Repository  # noqa: E402


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what may be lost is kept, each test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "kvm.cbt"


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the known state of repositories is kept, each test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder / "kvm-cbt" / "repositories"


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
