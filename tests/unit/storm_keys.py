# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions of a storm that add and remove key slots at once.

The configuration is a file, because the store decides which of them replaces it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from _cbt.operations import keys
from _cbt.operations.keys import KeyRequest, apply_keys
from _cbt.repository.crypto import key_slots
from _cbt.repository.format import configuration
from _cbt.repository.stores.directory import DirectoryStore

_FIRST = "first"  # the passphrase that every session gives


class _Halting:
    """A store that halts before each request about the configuration."""

    def __init__(self, store: DirectoryStore, halt: Callable[[str], None]) -> None:
        self._store, self._halt = store, halt

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("get", "put", "swap"):
            return found

        def halted(each: str, *arguments: Any) -> Any:
            self._halt(f"{name} {each}")
            return found(each, *arguments)

        return halted


class KeySlots:
    """The key slots of a repository. Each one that is added has its own name as passphrase."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="storm-")
        self._store = DirectoryStore(self._folder.name)
        self._opens: dict[str, bool | None] = {_FIRST: True}  # None while that is about to change
        monkeypatch.setattr(key_slots, "COST", 2)
        monkeypatch.setattr(keys, "open_store", lambda where: where.store)
        self._store.put(configuration.NAME, configuration.create(_FIRST).encode())

    def close(self) -> None:
        """Delete the folder."""
        self._folder.cleanup()

    def change(self, chance: random.Random, halt: Callable[[str], None]) -> None:
        """Add a slot, or remove one."""
        old = [each for each, opens in self._opens.items() if opens and each != _FIRST]
        removes = bool(old) and chance.random() < 0.5
        name = chance.choice(old) if removes else f"slot{len(self._opens)}"
        self._opens[name] = None
        request = KeyRequest(remove=(name,)) if removes else KeyRequest(name, name)
        where = SimpleNamespace(store=_Halting(self._store, halt), passphrase=_FIRST)
        apply_keys(where, request)  # type: ignore[arg-type]
        self._opens[name] = not removes

    def wrong(self) -> str:
        """What is wrong; empty if nothing is.

        A passphrase that was added opens the repository until it is removed, whatever else changes at the same time.
        """
        found = configuration.decode(self._store.get(configuration.NAME), "")
        for each, opens in self._opens.items():
            if opens is not None and (found.opened(each) is not None) != opens:
                return f"the passphrase {each} {'opens no' if opens else 'still opens a'} slot"
        return ""
