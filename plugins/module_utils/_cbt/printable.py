# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text as a terminal may show it. Names come from repositories, domains and guests, and can hold what moves a cursor or turns text around."""

from __future__ import annotations

import datetime


def printable(text: str) -> str:
    """The text, with control and format characters written as escapes such as ``\\x1b``."""
    return text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def utc_time(seconds: float) -> str:
    """A time in seconds since 1970 as UTC in ISO 8601, to the second."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).isoformat()
