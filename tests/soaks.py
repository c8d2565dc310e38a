# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often the tests that repeat something do so: a few times in every run, many times in a soak.

A soak is chosen by name, with a count of its own if need be: `make soak SOAK="kills=500 storm"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Soak:
    """A count: in every run, in a quick run, and in a soak; and what is counted."""

    usual: int
    quick: int
    soak: int
    unit: str


SOAKS: Mapping[str, Soak] = {
    "examples": Soak(150, 10, 2000, "examples of each property of the units"),
    "sharing": Soak(400, 20, 5000, "histories of writers, collectors and crashes in one repository"),
    "histories": Soak(4, 1, 40, "random histories of guest writes and backups"),
    "kills": Soak(40, 4, 200, "kills over one history"),
    "signals": Soak(12, 2, 60, "signals sent to a backup, of each kind"),
    "copies": Soak(2, 1, 100, "rounds of copies at once, some of them killed"),
    "storm": Soak(45, 10, 600, "seconds of backups, retention and verification at once"),
    "hangs": Soak(800, 10, 5000, "seeds of sessions that hang while clocks are set, in one process"),
    "clocks": Soak(10, 5, 600, "seconds of the same where clocks are set and puts hang"),
}

_counts = {name: soak.usual for name, soak in SOAKS.items()}


def count(name: str) -> int:
    """How often to repeat what the soak of this name counts."""
    return _counts[name]


def examples(share: float = 1.0) -> int:
    """How many examples hypothesis tries, for a property that takes ``share`` of the usual number."""
    return max(1, round(count("examples") * share))


def make_quick() -> None:
    """Repeat as little as makes sense."""
    _counts.update({name: soak.quick for name, soak in SOAKS.items()})


def choose(words: Iterable[str]) -> tuple[str, ...]:
    """Soak what words such as ``kills`` or ``kills=500`` name, or everything for ``all``. Returns the names; raises ValueError."""
    chosen: dict[str, int] = {}
    for word in words:
        name, _separator, number = word.partition("=")
        named = SOAKS if word == "all" else {name: SOAKS[name]} if name in SOAKS else {}
        if not named or (number and not number.isdecimal()):
            raise ValueError(
                f"There is no soak {word}. Choose from: all, {', '.join(f'{each}[=COUNT]' for each in SOAKS)}."
            )
        chosen.update({each: int(number or soak.soak) for each, soak in named.items()})
    _counts.update(chosen)
    return tuple(chosen)
