# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the table of what a definition may hold. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

TEXT = "#"  # the name of an element's text among its attributes


@dataclasses.dataclass(frozen=True)
class Value:
    """The rule of an attribute or text: the ``kind`` of value that it may have.

    Any other value is replaced by ``instead``, or removed if that is None. If the rule is ``essential``, the element is
    removed instead.
    """

    kind: str
    essential: bool = False
    instead: str | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rule of an element: the rules of its attributes and text.

    If an ``essential`` element is not allowed, its parent is removed, too. ``free`` elements are data and are kept
    whole.
    """

    values: t.Mapping[str, Value]
    essential: bool
    free: bool


def _value(kind: str) -> Value:
    kind, fallback, instead = kind.partition("?")
    return Value(kind.rstrip("!") or "WORD", kind.endswith("!"), instead if fallback else None)


def _rule(words: t.Sequence[str], essential: bool) -> Rule:
    pairs = [word.partition("=") for word in words if word != "**"]
    return Rule({name: _value(kind) for name, _equals, kind in pairs}, essential, "**" in words)


def _paths(pattern: str) -> list[str]:
    """Return the paths that a pattern such as ``a/{b,c}/d`` stands for."""
    before, opened, rest = pattern.partition("{")
    if not opened:
        return [pattern]
    names, _closed, after = rest.partition("}")
    return [path for name in names.split(",") for path in _paths(f"{before}{name}{after}")]


def read(table: str) -> dict[str, Rule]:
    """Return the rules, by element path below ``domain``. See ``table`` for the notation."""
    rules: dict[str, Rule] = {}
    for words in filter(None, (line.partition("--")[0].split() for line in table.splitlines())):
        rule = _rule(words[1:], words[0].endswith("!"))
        for path in _paths(words[0].rstrip("!")):
            rules[path] = (
                dataclasses.replace(rule, values={**rules[path].values, **rule.values}) if path in rules else rule
            )
    return rules
