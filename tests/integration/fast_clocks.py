# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clocks that run 1800 times as fast, and that a test sets while processes use them. Hours pass in seconds.

All spans of the engine, such as the lapse of a lease, keep their length by these clocks. A file says by how much the clock of each
host and that of the store are wrong. Objects get the time of the store's clock, or, while clients set the times of files, that of the
host that writes them. Some puts hang for hours.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import random
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

FACTOR = 1800
# What may hang, and how often beside the others. Packs may be deleted while the first draft that names them hangs.
HUNG = {"drafts/": 4, "trash/": 4, "points/": 2, "doomed/": 2, "condemned/": 1, "removed/": 1}
STORE = "store"
CLIENTS = "clients"  # other than 0 while clients set the times of files


def _boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) * FACTOR


@dataclasses.dataclass(frozen=True)
class Clocks:
    """The clocks, by a file that processes share; ``began`` is the time of the machine's start by the clocks that are right."""

    path: Path
    hangs: float  # how probable it is that a put of the least kind hangs
    longest: float  # seconds that one hangs at the most
    began: float = dataclasses.field(default_factory=lambda: time.time() - _boot())

    def set(self, offsets: dict[str, float]) -> None:
        """Set clocks: the seconds by which each is wrong, all others being right."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(offsets))
        os.replace(new, self.path)

    def time(self, clock: str) -> float:
        """The time by a clock, in seconds since 1970."""
        return self.began + _boot() + self._offsets().get(clock, 0.0)

    def of_objects(self, host: str) -> float:
        """The time that an object gets which a host stores now."""
        return self.time(host if self._offsets().get(CLIENTS) else STORE)

    def _offsets(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(self.path.read_text())
        return found

    def code(self, host: str) -> str:
        """Python code that has a process of the collection use these clocks."""
        use = f"fast_clocks.use(fast_clocks.Clocks.parsed({self._text()!r}), {host!r}, fast_clocks.engine())"
        return f"sys.path.append({str(Path(__file__).parent)!r}); import fast_clocks; {use}"

    def _text(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "path": str(self.path)})

    @classmethod
    def parsed(cls, text: str) -> Clocks:
        """The clocks as another process describes them."""
        fields = json.loads(text)
        return cls(**{**fields, "path": Path(fields["path"])})


def engine() -> tuple[Any, ...]:
    """The modules that ask for the time, as Ansible imports them."""
    from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.backup import run
    from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.tracking import tracking
    from ansible_collections.kvm.cbt.plugins.module_utils._cbt.repository.sharing import leases
    from ansible_collections.kvm.cbt.plugins.module_utils._cbt.repository.stores import directory

    return leases, directory, run, tracking


def use(clocks: Clocks, host: str, modules: tuple[Any, ...], change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have the engine of this process, which is on a host, use these clocks."""
    leases, directory_store, *dating = modules
    change(leases, "boot_clock", _boot)
    change(leases, "wall_clock", lambda: clocks.time(host))
    change(leases, "RENEWAL", leases.RENEWAL / FACTOR)  # a thread waits for that long by the real clock

    class Now(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime.fromtimestamp(clocks.time(host), tz)

    for module in dating:
        named = types.SimpleNamespace(datetime=Now, timezone=datetime.timezone, timedelta=datetime.timedelta)
        change(module, "datetime", named)
    _set_times(clocks, host, directory_store._FileUpload, change)
    if clocks.hangs:
        _hang(clocks, directory_store.DirectoryStore, change)


def _set_times(clocks: Clocks, host: str, upload: Any, change: Callable[[Any, str, Any], None]) -> None:
    """Give each object its time as it appears."""
    commit = upload.commit

    def dated(self: Any, replace: bool = True) -> Any:
        now = clocks.of_objects(host)
        os.utime(self._handle, (now, now))
        return commit(self, replace)

    change(upload, "commit", dated)


def _hang(clocks: Clocks, store: Any, change: Callable[[Any, str, Any], None]) -> None:
    """Have some puts of what others heed hang before the object appears."""
    put = store.put

    def late(self: Any, name: str, data: bytes, replace: bool = True) -> Any:
        if random.random() < clocks.hangs * HUNG.get(f"{name.partition('/')[0]}/", 0):
            time.sleep(random.uniform(0, clocks.longest) / FACTOR)
        return put(self, name, data, replace)

    change(store, "put", late)
