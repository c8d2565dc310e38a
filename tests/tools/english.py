# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds banned phrases in documentation, option texts, task names, messages, docstrings and comments.

.venv/bin/python tests/tools/english.py
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BANNED = re.compile(
    r"""\b(?:
        tells? | told | telling
        | somebody | nobody | whoever | whatever
        | meanwhile
        | (?:is|are|was|were)\ to\ be
        | on\ (?:its|their)\ way\ out
        | (?:has|have|had)\ (?:its|their)\ time
        | without\ a\ word
        | see\ to
    )\b
    | (?:^|[.:]\ )What\ (?:is|was|are)\b(?![^.\n]*\?)""",
    re.IGNORECASE | re.VERBOSE,
)
_OUTPUT = re.compile(r"^ *```text\n.*?^ *```$", re.DOTALL | re.MULTILINE)
TEXTS = ["*.md", "docs/**/*.md", "changelogs/fragments/*.yml", "playbooks/*.yml", "roles/**/*.md", "roles/**/*.yml"]
TEXTS += ["plugins/filter/*.yml", "tests/lab/README.md"]
SOURCES = ["plugins/**/*.py"]
WORDS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}

Finding = tuple[int, str]


def found_in(text: str, first: int = 1) -> Iterator[Finding]:
    """Line numbers and phrases of all findings in a text that begins at line ``first``."""
    for match in BANNED.finditer(text):
        yield first + text.count("\n", 0, match.start()), " ".join(match[0].split())


def findings(path: Path) -> list[Finding]:
    """The findings of a file: of Python, only in strings and comments; of Markdown, not in blocks of output."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(found_in(_OUTPUT.sub(lambda block: "\n" * block[0].count("\n"), text)))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [each for token in tokens if token.type in WORDS for each in found_in(token.string, token.start[0])]


def files() -> list[Path]:
    """All files to check."""
    return sorted({path for pattern in TEXTS + SOURCES for path in ROOT.glob(pattern) if path.is_file()})


def main() -> int:
    """Print what is wrong. Returns 1 if anything is."""
    wrong = [f"{path.relative_to(ROOT)}:{line}: {phrase}" for path in files() for line, phrase in findings(path)]
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
