# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns of names, in which ``*`` and ``?`` alone are special. Pure."""

from __future__ import annotations

import fnmatch
import typing as t

Names = t.Sequence[str]  # the names of one object


def matches(names: Names, patterns: t.Iterable[str]) -> bool:
    """Return whether one of the names matches one of the patterns. A name matches itself."""
    escaped = [pattern.replace("[", "[[]") for pattern in patterns]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in escaped)


def missing(patterns: t.Iterable[str], known: t.Sequence[Names]) -> list[str]:
    """Return the patterns without wildcards that match none of the known objects."""
    return [each for each in patterns if not {"*", "?"} & set(each) and not any(matches(one, [each]) for one in known)]
