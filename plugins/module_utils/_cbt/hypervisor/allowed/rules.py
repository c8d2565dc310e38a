# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the table of what a definition may hold. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

TEXT = "#"  # stands for the text of an element, among its attributes


@dataclasses.dataclass(frozen=True)
class Value:
    """What an attribute or a text may be. An ``essential`` one that is not takes its element along; else ``instead`` is set, if there is one."""

    kind: str
    essential: bool = False
    instead: str | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """What an element may have. Without an ``essential`` element, its parent goes as well; ``free`` if all within is data."""

    values: t.Mapping[str, Value]
    essential: bool = False
    free: bool = False


def _value(kind: str) -> Value:
    kind, fallback, instead = kind.partition("?")
    return Value(kind.rstrip("!") or "WORD", kind.endswith("!"), instead if fallback else None)


def _rule(words: t.Sequence[str], essential: bool) -> Rule:
    pairs = [word.partition("=") for word in words if word != "**"]
    return Rule({name: _value(kind) for name, _equals, kind in pairs}, essential, "**" in words)


def _paths(pattern: str) -> list[str]:
    """The paths that ``a/{b,c}/d`` stands for."""
    before, opened, rest = pattern.partition("{")
    if not opened:
        return [pattern]
    names, _closed, after = rest.partition("}")
    return [path for name in names.split(",") for path in _paths(f"{before}{name}{after}")]


def read(table: str) -> dict[str, Rule]:
    """The rules by the path of an element below ``domain``. See ``table`` for the notation."""
    rules: dict[str, Rule] = {}
    for words in filter(None, (line.partition("--")[0].split() for line in table.splitlines())):
        rule = _rule(words[1:], words[0].endswith("!"))
        for path in _paths(words[0].rstrip("!")):
            rules[path] = (
                dataclasses.replace(rule, values={**rules[path].values, **rule.values}) if path in rules else rule
            )
    return rules
