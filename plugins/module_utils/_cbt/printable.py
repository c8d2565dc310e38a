# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes text safe for terminals.

Names come from repositories, domains and guests. They can contain characters that move the cursor or reverse the text.
"""

from __future__ import annotations

import datetime


def printable(text: str) -> str:
    """Return the text with control and format characters as escapes such as ``\\x1b``."""
    return text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def utc_time(seconds: float) -> str:
    """Return seconds since 1970 as UTC in ISO 8601, rounded down to a second."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).isoformat()
