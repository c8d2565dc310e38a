"""The stores that need no server keep what every store has to."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_contract import StoreContract
from stores_for_tests import MemoryStore

from _cbt.repository.stores.base import Store
from _cbt.repository.stores.directory import DirectoryStore


class TestDirectory(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return DirectoryStore(str(tmp_path / "repository"))


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()
