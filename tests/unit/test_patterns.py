# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns of names: ``*`` and ``?`` alone are special."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from _cbt.patterns import matches, missing

NAMES = some.text(some.sampled_from("ab*?[]!-^$\\. \n{}|()"), max_size=8)


def _fits(name: str, pattern: str) -> bool:
    """The definition, letter by letter."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(_fits(name[start:], pattern[1:]) for start in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and _fits(name[1:], pattern[1:])


@given(NAMES, NAMES)
def test_a_pattern_matches_as_its_definition_says(name: str, pattern: str) -> None:
    assert matches([name], [pattern]) == _fits(name, pattern)


@given(NAMES)
def test_a_name_always_matches_itself_and_is_never_missing(name: str) -> None:
    assert matches(["uuid", name], [name])
    assert missing([name], [("uuid", name)]) == []


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("[prod] web1", "p"), ("[prod] web1", "p web1"), ("web[12]", "web1"), ("[!a]", "b"), ("a", "A")],
)
def test_brackets_and_case_are_taken_literally(pattern: str, name: str) -> None:
    assert not matches([name], [pattern])
    assert missing([pattern], [(name,)]) == [pattern]


def test_a_pattern_is_not_missing_but_a_name_is() -> None:
    assert missing(["x*", "?", "[x]", "web1"], [("web2", "u2")]) == ["[x]", "web1"]
